"""First stage of a shard: rows -> checked and rendered -> tokenized sequences in a token store (`ShardTokenizer.run`).

Rows are read, checked and rendered here, then encoded and written (token_batch.py). A background thread encodes those that
are rendered while the tokenizer is being loaded, and all of them if there is only one worker.
Invariant: every row ends as sequences or as a line in rejects.jsonl, and is counted.

Owner of: every input row is used, or is in rejects.jsonl with a reason.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from functools import partial
from itertools import islice
from pathlib import Path
from traceback import extract_tb
from typing import Any

from sft_hydra.chat.checks import LearnedWrongError
from sft_hydra.chat.render import Renderer
from sft_hydra.chat.row_renderer import RowRenderer, renderers_of
from sft_hydra.chat.supervise import Supervisor
from sft_hydra.chat.tokenizer import ChatTokenizer
from sft_hydra.chat.turn_spans import RenderedSequence
from sft_hydra.data_prep.content_hash import content_hash, serialize
from sft_hydra.data_prep.control_tokens import WORD, ControlTokenEscaper
from sft_hydra.data_prep.conversation import ConversationReader
from sft_hydra.data_prep.filters import Filters
from sft_hydra.data_prep.llm_judge import LLMJudge
from sft_hydra.data_prep.ordered_executor import OrderedExecutor
from sft_hydra.data_prep.plan import Plan, ShardPlan, check_tokenizer
from sft_hydra.data_prep.raw_text import TextRenderer
from sft_hydra.data_prep.sources import MAX_ROW_BYTES, MalformedRow, Source, read_rows
from sft_hydra.data_prep.token_batch import StoreWriter, TokenBatcher
from sft_hydra.data_prep.token_store import TokenStoreWriter
from sft_hydra.data_prep.tokenize import SequenceEncoder, TokenBatch, start_fast
from sft_hydra.data_prep.turns import arrange
from sft_hydra.data_prep.unread import SPEECH, check_speech
from sft_hydra.errors import RowError
from sft_hydra.records import Conversation
from sft_hydra.schema.data import DataConfig

JUDGED_TOGETHER = 256  # rows
BATCH_CHARS = 2_000_000  # characters encoded at once: large enough to be fast, small enough for memory
BATCH_ROWS = 50_000
AHEAD = 64_000_000  # characters rendered ahead while the tokenizer is being loaded

# what a value of a wrong type raises
UNFORESEEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError)

Report = Callable[[int, int, int, int], None]  # counts of rows, tokens, supervised tokens, rejects
Done = Callable[[], None]


class ShardTokenizer:
    """Tokenizes any shard of one plan. `library`: returns the tokenizer library; may wait until it is chosen. `alone`: there is
    no other worker process, so encoding may use a second core. ChangedError if the tokenizer on disk changed."""

    def __init__(self, plan: Plan, library: Callable[[], str], alone: bool = False) -> None:
        self.plan = plan
        self.alone = alone
        self.library = library
        self.tokenizer = tokenizer = ChatTokenizer(
            plan.tokenizer_folder, plan.template, plan.template_kwargs, plan.tokenizer_file, plan.named_templates
        )
        check_tokenizer(tokenizer, plan.tokenizer_identity)
        tokenizer.added = plan.added  # read once, when the plan was made
        self.background = OrderedExecutor(AHEAD)
        self.writers: set[TokenStoreWriter] = set()  # of shards that are not finished
        self.encoder: SequenceEncoder | None = None  # made by the first job
        self.renderer = _row_renderer(tokenizer, plan.data, datetime.fromisoformat(plan.now))
        self.renderer.expect(sum(shard.rows for shard in plan.shards))
        self.render = self.renderer.sequences
        if plan.data.mask_reasoning or plan.data.roles_to_train != ["assistant"]:
            ends = [token.text for token in tokenizer.added if token.special]
            wanted = Supervisor(self.renderer.sequences, plan.data.roles_to_train, plan.data.mask_reasoning, ends)
            self.render = wanted.sequences
        self.of_lines = False  # rows are from a file of lines, which already limits their size
        self.texts: dict[str, TextRenderer] = {}  # by source
        self.reader: ConversationReader | None = None  # of the current source
        self.filters = Filters(plan.data.filters)
        judge = plan.data.filters.judge
        self.judge = LLMJudge(judge, plan.judge_cache) if judge.model else None
        trusted = plan.data.allow_special_in_content or plan.template is None
        self.guard = None if trusted else ControlTokenEscaper(tokenizer)

    def warm_up(self) -> None:
        """Start to load the tokenizer in the background, which takes a second."""
        self.background.start(lambda: start_fast(self.tokenizer))

    def run(self, shard: ShardPlan, folder: Path, report: Report, done: Done) -> None:
        """Read and render the shard's rows. Its token store is in `folder` when `done` is called, in a later `run` or `finish`.
        `report` is called with the counts of each batch. DataError if an input is invalid."""
        self.renderer.forget()
        try:
            self._run(shard, folder, report, done)
        except LearnedWrongError:  # the render cache is wrong for this template: render every row
            self.renderer.trust_nothing()
            self._run(shard, folder, report, done)

    def finish(self) -> None:
        """Wait until all token stores are written. Raises what writing them raised."""
        self.background.help()
        self.background.finish()

    def close(self) -> None:
        """End the background thread and close the files of unfinished shards."""
        self.background.close()
        for writer in self.writers:
            writer.abandon()

    def _run(self, shard: ShardPlan, folder: Path, report: Report, done: Done) -> None:
        writer = TokenStoreWriter(folder)
        self.writers.add(writer)
        source = self.plan.sources[shard.source]
        filler = StoreWriter(self.plan, source, writer)

        def flush(batch: TokenBatcher) -> None:
            encode = partial(self._encode, batch)
            fill = partial(filler.fill, batch)
            self.background.submit(
                encode,
                lambda tokens: report(*fill(tokens)),
                ready=self.encoder is not None and not self.alone,
                weight=batch.chars,
            )

        batch = TokenBatcher()
        for index, part in enumerate(shard.ranges):
            self.of_lines = part.file.kind == "lines"
            rows = read_rows(part.file, source, part.first, part.stop, part.offset)
            for number, row in self._judged(rows, source) if self.judge else rows:
                self._add(batch, row, source, (index, number, f"{part.file.path}:{number + 1}"))
                if batch.chars > BATCH_CHARS or batch.read >= BATCH_ROWS:
                    flush(batch)
                    batch = TokenBatcher()
        flush(batch)

        def close(_: None) -> None:
            writer.close()
            self.writers.remove(writer)
            done()

        self.background.submit(lambda: None, close, ready=True, weight=0)

    def _add(self, batch: TokenBatcher, row: Any, source: Source, place: tuple[int, int, str]) -> None:
        batch.read += 1
        try:
            conversation, sequences, hashed = self.convert(row, source, place[2])
            batch.add((hashed, *place), sequences)
            self._count_unread(batch, conversation)
        except RowError as problem:
            batch.rejects.append((place[2], problem.reason, problem.detail))
        except RecursionError:
            batch.rejects.append((place[2], "nesting", "objects or lists are nested too deeply"))
        except UNFORESEEN as problem:  # a fault of ours, which must not end the preparation of a million other rows
            batch.rejects.append((place[2], "unforeseen", _where(problem)))

    def _count_unread(self, batch: TokenBatcher, conversation: Conversation) -> None:
        if conversation.template_kwargs:
            batch.unread.update(self.renderer.unread(conversation))
            return
        for key in conversation.unread:  # most rows: the same without a set
            if not self.renderer.is_read(key):
                batch.unread[key] += 1

    def _encode(self, batch: TokenBatcher) -> TokenBatch:
        if self.encoder is None:
            prefix = self.tokenizer.bos_prefix if self.plan.template is None else []
            self.encoder = SequenceEncoder(self.tokenizer, self.library(), prefix)
        return batch.encode(self.encoder)

    def _judged(self, rows: Iterator[tuple[int, Any]], source: Source) -> Iterator[tuple[int, Any]]:
        """The same rows, after requesting verdicts on those that the filters keep, JUDGED_TOGETHER rows at a time."""
        assert self.judge is not None
        while chunk := list(islice(rows, JUDGED_TOGETHER)):
            worth = []
            for _, row in chunk:
                with suppress(RowError, RecursionError):
                    worth.append(self.check(row, source, ""))
            self.judge.ask(worth)
            yield from chunk

    def check(self, row: Any, source: Source, origin: str) -> Conversation:
        """A parsed row as a conversation. `origin`: `file:line`. RowError if it is invalid or a filter rejects it."""
        if isinstance(row, MalformedRow):
            raise RowError(row.reason, row.problem)
        if self.reader is None or self.reader.source is not source.config:
            self.reader = ConversationReader(source.config, source.name)
        conversation = self.reader.conversation(row, origin)
        if not self.of_lines:
            _check_size(conversation)
        if not SPEECH.keys().isdisjoint(conversation.unread):
            check_speech(self.renderer.unread(conversation))
        if self.plan.data.merge_same_role or self.plan.data.train_on_last_turn:
            conversation = arrange(conversation, self.plan.data)
        self.filters.check(conversation)
        return conversation

    def convert(self, row: Any, source: Source, origin: str) -> tuple[Conversation, list[RenderedSequence], int]:
        """The conversation, rendered sequences and content hash of a parsed row. RowError if it is invalid or rejected."""
        conversation = self.check(row, source, origin)
        if self.judge is not None:
            self.judge.check(conversation)
        render = self.text_renderer(source).sequences if conversation.is_text else self.render
        sequences = render(conversation)
        serialized = serialize(conversation)
        if self.guard is not None and self.guard.is_needed(conversation, serialized):
            sequences = _guarded(render(self.guard.mark(conversation)), sequences)
        return conversation, sequences, content_hash(conversation, serialized)

    def text_renderer(self, source: Source) -> TextRenderer:
        """The renderer of a raw-text source, cached by its name. ConfigError if it has no end token."""
        if source.name not in self.texts:
            self.texts[source.name] = TextRenderer.of(self.tokenizer, source.config, source.name)
        return self.texts[source.name]


def _where(problem: Exception) -> str:
    """The exception and the line of ours that raised it, for a report of the fault."""
    package = str(Path(__file__).parents[1])
    frame = [frame for frame in extract_tb(problem.__traceback__) if frame.filename.startswith(package)][-1]
    return (
        f"{type(problem).__name__}: {problem} ({Path(frame.filename).name}:{frame.lineno}); rows of this form are not foreseen, "
        "please report it with the row"
    )


def _check_size(conversation: Conversation) -> None:
    chars = sum(len(message.get("content") or "") for message in conversation.messages)
    if chars > MAX_ROW_BYTES:
        raise RowError("too_large", f"{chars:,} characters; the limit of a row is {MAX_ROW_BYTES:,}")


def _guarded(marked: list[RenderedSequence], plain: list[RenderedSequence]) -> list[RenderedSequence]:
    """The sequences with marked control-token text. RowError if the template renders marked text differently."""
    same = [(sequence.chunks, sequence.trained) for sequence in plain]
    if [([c.replace(WORD, "") for c in sequence.chunks], sequence.trained) for sequence in marked] != same:
        raise RowError(
            "control_text",
            "the chat template interprets control-token text in a message content, so it cannot be escaped",
        )
    for sequence in marked:
        sequence.guarded = WORD in sequence.text
    return marked


def _row_renderer(tokenizer: ChatTokenizer, data: DataConfig, now: datetime) -> RowRenderer:
    def make(variables: dict[str, Any]) -> Renderer:
        return Renderer.of(tokenizer, data, now, variables)

    return RowRenderer(renderers_of(make, tokenizer.template_variables))
