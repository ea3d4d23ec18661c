"""Generation models: messages or text in, an answer out, at once or in pieces."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, overload

from edgelm.runtime.background import Background
from edgelm.runtime.bundle import TOKENIZER_DIR, Bundle
from edgelm.runtime.engine import DecoderOptions, DecoderSession
from edgelm.runtime.errors import BundleError, EdgelmError, InputError, UsageError
from edgelm.runtime.generate import loop
from edgelm.runtime.generate.answer import Answer, Step
from edgelm.runtime.generate.constraints import Constraint, Constraints
from edgelm.runtime.generate.detokenize import Detokenizers
from edgelm.runtime.generate.held import Held
from edgelm.runtime.generate.options import MAX_TOKENS, GenerateOptions, Speculate
from edgelm.runtime.generate.speculate import Draft, Guesser, PromptLookup
from edgelm.runtime.generate.stops import StopStrings
from edgelm.runtime.generate.template import ChatTemplate
from edgelm.runtime.manifest import TEMPLATE_FILE, Variant
from edgelm.runtime.model import Model
from edgelm.runtime.predictions import Generation, Piece, TokenScore, Usage
from edgelm.runtime.tokenizer import FILE_NAME as TOKENIZER_FILE
from edgelm.runtime.tokenizer import Tokenizer

MAX_SLOTS = 8  # answers of a list that grow side by side
FORMS = ("json_schema", "grammar", "regex", "choices")

Message = Mapping[str, Any]
Prompt = str | Sequence[Message]


class ChatModel(Model):
    """A loaded generation model. `predict` and `stream` may be called from many threads.

    The engine keeps what it read last, so the next turn of a chat only reads what is new; answers
    that grow in turns read each other's place anew. A call with a `seed` has a sequence of its own
    and reads its whole prompt: its answer depends on nothing but the call, and the date where the
    chat template tells it.
    """

    def __init__(
        self,
        bundle: Bundle,
        variant: Variant,
        options: DecoderOptions,
        draft: ChatModel | None = None,
    ) -> None:
        """draft: a smaller model of the same tokenizer, closed with this one."""
        from edgelm.targets import get_target

        super().__init__(bundle, variant)
        text = self.manifest.text

        def open_(folder: Path) -> DecoderSession:
            return get_target(variant.target).open_decoder(folder, variant, text, options)

        opening = Background(bundle.open_variant, variant, open_)
        try:
            bundle.check_tokenizer()
            self._template = _read_template(bundle) if self.task.chat else None
            self._tokenizer = Tokenizer(bundle.folder / TOKENIZER_DIR, text, truncates=False)
        except BaseException:
            with contextlib.suppress(EdgelmError):
                opening.result().close()
            raise
        session = opening.result()
        self._session: DecoderSession | None = session
        self.held = Held(session)
        self._draft = draft
        self._texts = Detokenizers(self._tokenizer.backend)
        tokenizer_file = bundle.folder / TOKENIZER_DIR / TOKENIZER_FILE
        self._constraints = Constraints(tokenizer_file, self.task.end_ids, session.n_vocab)
        self._busy = threading.RLock()  # one step of the engine at a time
        self.device = session.device
        self.context_tokens = session.context_tokens

    @overload
    def predict(self, inputs: list[Prompt], **options: Any) -> list[Generation]: ...

    @overload
    def predict(self, inputs: Prompt, **options: Any) -> Generation: ...

    def predict(
        self, inputs: Prompt | list[Prompt], **options: Any
    ) -> Generation | list[Generation]:
        """Answer a conversation (messages with role and content), a text, or a list of either.

        A text is a user's message where the model has a chat template, unless `raw=True`; else, and
        for models without one, it is continued as it stands. Options: max_tokens, temperature,
        top_p, top_k, min_p, repetition_penalty, seed, stop, logprobs, on_long, speculate (see
        GenerateOptions); tools, that the template may show; and one of json_schema, grammar, regex,
        choices, which the answer then has the form of. The answers of a list grow side by side.

        Raises InputError where prompt and answer do not fit the context, UsageError.
        """
        if not _is_batch(inputs):
            return _joined(list(self.stream(cast("Prompt", inputs), **options)))
        asked, prompts = _Asked(options), cast("list[Prompt]", inputs)
        if not prompts:
            return []
        if asked.options.on_long == "slide":  # forgetting is for one sequence at a time
            return [self.predict(prompt, **options) for prompt in prompts]
        form = self._constraints.of(**asked.form)
        answers: list[Answer] = []
        for i, prompt in enumerate(prompts):
            try:
                answers.append(self._answer(self.prompt_ids(prompt, asked), asked, form))
            except InputError as err:
                said = f"prompt {i}: {err.message}"
                raise InputError(said, hint=err.hint, index=i) from err
        with self._busy:
            n_slots = min(MAX_SLOTS, len(answers))
            longest = max(a.n_prompt + self._room(a.n_prompt, asked.options) for a in answers)
            side = self._open_session().fork(n_slots, longest)
            try:
                steps = loop.run_side_by_side(side, answers)
            finally:
                side.close()
        return [
            _joined([self.piece(a, s, s is done[-1]) for s in done])
            for a, done in zip(answers, steps, strict=True)
        ]

    def stream(self, prompt: Prompt, **options: Any) -> Iterator[Piece]:
        """As `predict`, for one prompt, in pieces of text. Closing the iterator ends the answer."""
        return self._pieces(self.begin(prompt, **options), _Asked(options).options)

    def begin(self, prompt: Prompt, **options: Any) -> Answer:
        """An answer that has not begun, for those who drive `decoder` themselves. Raises InputError
        where prompt and answer do not fit the context, UsageError."""
        asked = _Asked(options)
        form = self._constraints.of(**asked.form)
        return self._answer(self.prompt_ids(prompt, asked), asked, form)

    @property
    def decoder(self) -> DecoderSession:
        """The engine. Who drives it uses neither `predict` nor `stream` at the same time."""
        return self._open_session()

    def prompt_ids(self, prompt: Prompt, asked: _Asked | None = None) -> list[int]:
        """The token ids that a prompt becomes. Raises InputError."""
        asked = asked or _Asked({})
        if isinstance(prompt, str):
            if self._template is None or asked.raw:
                return self._tokenizer.prompt_ids(_text(prompt), special=True)
            prompt = [{"role": "user", "content": prompt}]
        messages = _messages(prompt)
        if self._template is None:
            raise InputError(
                "the model has no chat template, so it takes no messages",
                hint="give it a text to continue",
            )
        rendered = self._template.render(messages, tools=asked.tools)
        return self._tokenizer.prompt_ids(_text(rendered), special=False)

    def close(self) -> None:
        """Free the engine; calling it twice is harmless."""
        with self._busy:
            if self._session is not None:
                self._session.close()
                self._session = None
            if self._draft is not None:
                self._draft.close()
            self._bundle = None

    def _open_session(self) -> DecoderSession:
        if self._session is None:
            raise UsageError("the model is closed")
        return self._session

    def _room(self, n_prompt: int, options: GenerateOptions) -> int:
        """Tokens that the answer may have. Raises InputError where the context is too short."""
        left = self.context_tokens - n_prompt
        wanted = options.max_tokens
        if options.on_long == "slide":
            return wanted or MAX_TOKENS
        if left < (wanted or 1):
            said = f"{n_prompt} tokens of prompt and {wanted or 1} of answer"
            raise InputError(
                f"{said} are more than the context of {self.context_tokens}",
                hint="shorten the prompt or max_tokens, or forget the oldest with on_long='slide'",
            )
        return wanted or min(MAX_TOKENS, left)

    def _answer(self, prompt: list[int], asked: _Asked, form: Constraint | None) -> Answer:
        if not prompt:
            raise InputError("the prompt is empty")
        stops = asked.options.stop
        return Answer(
            prompt,
            asked.options,
            end_ids=frozenset(self.task.end_ids),
            max_tokens=self._room(len(prompt), asked.options),
            text=self._texts.start(prompt),
            stops=StopStrings(stops) if stops else None,
            constraint=None if form is None else form.fresh(),
            guesser=self._guesser(asked.options.speculate),
        )

    def _guesser(self, way: Speculate) -> Guesser | None:
        n_guess = self._open_session().n_guess
        if way != "off" and n_guess == 0:
            raise UsageError(
                "speculate: the model was not loaded for guesses",
                hint="load it with speculate=True",
            )
        if way == "draft":
            if self._draft is None:
                raise UsageError(
                    "there is no draft model", hint="load with draft=, a smaller bundle"
                )
            return Draft(self._draft.held, n_guess)
        return PromptLookup(n_guess) if way == "lookup" else None

    def _pieces(self, answer: Answer, options: GenerateOptions) -> Iterator[Piece]:
        slides = options.on_long == "slide"
        window = _Window(self.context_tokens, answer.n_prompt) if slides else None
        held, side = self.held, None
        try:
            if options.seed is not None:
                size = answer.n_prompt + self._room(answer.n_prompt, options)
                with self._busy:
                    side = self._open_session().fork(1, min(size, self.context_tokens))
                held = Held(side)
            while answer.finish_reason is None:
                with self._busy:
                    self._open_session()
                    visible = answer.ids if window is None else window.visible(answer.ids)
                    if answer.n_answer == 0:
                        answer.n_reused = held.n_kept(visible)
                    steps = loop.step(held, answer, visible)
                for i, step in enumerate(steps):
                    is_last = answer.finish_reason is not None and i == len(steps) - 1
                    piece = self.piece(answer, step, is_last)
                    if piece.text or is_last or piece.logprobs:
                        yield piece
        finally:
            if side is not None:
                with self._busy:
                    side.close()

    def piece(self, answer: Answer, step: Step, is_last: bool) -> Piece:
        """What a step of an answer brought."""
        scores = None
        if step.logprobs is not None:
            own, *others = step.logprobs
            token = self._tokenizer.token
            alternatives = tuple((token(o.token_id), o.logprob) for o in others)
            scores = (TokenScore(token(own.token_id), own.logprob, alternatives),)
        if not is_last:
            return Piece(step.text, logprobs=scores)
        usage = Usage(answer.n_prompt, answer.n_answer, answer.n_reused)
        return Piece(step.text, answer.finish_reason, usage, answer.stop, scores)


class _Asked:
    """The keyword arguments of a call, sorted."""

    def __init__(self, given: Mapping[str, Any]) -> None:
        rest = dict(given)
        self.raw = bool(rest.pop("raw", False))
        self.tools: Sequence[Mapping[str, Any]] | None = rest.pop("tools", None)
        if self.tools is not None and not _are_mappings(self.tools):
            raise UsageError("tools: a list of mappings is needed")
        self.form = {name: rest.pop(name) for name in FORMS if name in rest}
        self.options = GenerateOptions.of(**rest)


class _Window:
    """What a model sees of a text longer than its context: the beginning of the prompt, and the end
    of the text. Half of the context is dropped at once, so that the rest is read anew seldom."""

    def __init__(self, context_tokens: int, n_prompt: int) -> None:
        self._size = context_tokens
        self._kept = min(n_prompt, context_tokens // 4)
        self._dropped = 0

    def visible(self, ids: list[int]) -> list[int]:
        while len(ids) - self._dropped >= self._size:
            self._dropped += self._size // 2
        if self._dropped == 0:
            return ids
        return ids[: self._kept] + ids[self._kept + self._dropped :]


def _joined(pieces: list[Piece]) -> Generation:
    last = pieces[-1]
    assert last.finish_reason is not None and last.usage is not None
    scores = [s for p in pieces for s in p.logprobs or ()]
    return Generation(
        "".join(p.text for p in pieces),
        last.finish_reason,
        last.usage,
        last.stop,
        tuple(scores) if last.logprobs is not None else None,
    )


def _is_batch(inputs: object) -> bool:
    """A list of texts or conversations; a conversation is itself a list of mappings."""
    if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, Sequence):
        return False
    return not inputs or not isinstance(inputs[0], Mapping)


def _messages(prompt: object) -> list[Message]:
    rule = "messages are mappings with a role, such as {'role': 'user', 'content': 'hi'}"
    if not isinstance(prompt, Sequence) or isinstance(prompt, bytes) or not prompt:
        raise InputError(f"{type(prompt).__name__} {str(prompt)[:60]!r}: {rule}")
    for i, message in enumerate(prompt):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InputError(f"message {i}: {str(message)[:60]!r}: {rule}")
    return list(prompt)


def _are_mappings(values: object) -> bool:
    is_list = isinstance(values, (list, tuple))
    return is_list and all(isinstance(value, Mapping) for value in values)


def _text(value: str) -> str:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as err:
        raise InputError("the prompt holds a lone surrogate, which is no text") from err
    return value


def _read_template(bundle: Bundle) -> ChatTemplate:
    path = bundle.folder / TEMPLATE_FILE
    try:
        source = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as err:
        raise BundleError(f"{path}: cannot be read: {err}") from err
    return ChatTemplate(source, bundle.manifest.task.special_tokens)
