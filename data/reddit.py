"""Reddit posts of webis/tldr-17, streamed from the Hugging Face hub (Völske et al. 2017, "TL;DR: Mining Reddit to Learn
Automatic Summarization").

The dataset's own repository holds a loading script, which `datasets` no longer runs; the hub converts datasets to Parquet
(large ones in part) on the branch `refs/convert/parquet`, and that is what is read, only the columns that are needed.
"""

from data.artifacts import InputError, reason_of
from data.partial import Resumable

REPOSITORY = "webis/tldr-17"
BRANCH = "refs/convert/parquet"


class RedditDocuments:
    """Yields `(name, text)` of each post, text None for a post of another subreddit than `subreddits` (all if empty).

    `datasets` opens a lost connection again, up to `retries` times in a row, and says so. `stamp` is the commit that is read.
    Raises InputError if the hub can't be reached or has other columns, Resumable if it was lost on the way.
    """

    part = None

    def __init__(self, text_column, subreddits, retries):
        self.text_column, self.subreddits, self.retries = text_column, subreddits, retries
        self.stamp = None  # not known before the first post is read

    def __iter__(self):
        from huggingface_hub.utils import httpx

        stream, posts = self.open(), 0
        try:
            for posts, row in enumerate(stream, 1):
                wanted = not self.subreddits or (row["subreddit"] or "").lower() in self.subreddits
                yield str(row.get("id") or posts), (row[self.text_column] or "") if wanted else None
        except (OSError, httpx.RequestError) as error:
            raise Resumable(
                f"{REPOSITORY}: the connection to the Hugging Face hub was lost after {posts:,} posts and {self.retries} retries "
                f"({reason_of(error)}); nothing is lost: go on with the same command and --resume"
            ) from None
        except ValueError as error:
            remedy = "try again later, or prepare local files with --source text"
            raise InputError(f"{REPOSITORY}: expected Parquet files, found: {reason_of(error)}; {remedy}") from None

    def open(self):
        """Find the files and open the stream."""
        import datasets
        from huggingface_hub.utils import httpx

        datasets.config.STREAMING_READ_MAX_RETRIES = self.retries + 1  # counts the first try
        datasets.utils.logging.set_verbosity_warning()
        try:
            builder = datasets.load_dataset_builder(REPOSITORY, revision=self.stamp or BRANCH)
            columns = builder.as_streaming_dataset(split="train").column_names
            wanted = {self.text_column, *(["subreddit"] if self.subreddits else [])}
            # Naming the columns here, not with select_columns, keeps the others from being downloaded.
            named = sorted((wanted | {"id"}) & set(columns))
            stream = datasets.load_dataset(REPOSITORY, split="train", streaming=True, revision=builder.hash, columns=named)
        except (OSError, RuntimeError, ValueError, httpx.RequestError) as error:
            message = f"{REPOSITORY} can't be streamed from the Hugging Face hub ({reason_of(error)}); check the network"
            if self.stamp:
                raise Resumable(f"{message} and go on with the same command and --resume") from None
            raise InputError(f"{message}, or prepare local files with --source text") from None
        if missing := sorted(wanted - set(columns)):
            found = ", ".join(columns)
            raise InputError(f"{REPOSITORY}: expected a column '{missing[0]}', found: {found}; name one with --text_column")
        self.stamp = builder.hash
        return stream
