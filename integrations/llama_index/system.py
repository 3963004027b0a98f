"""Any system of a comparison as a LlamaIndex query engine; knows nothing of how a system finds or answers."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from llama_index.core.callbacks import CallbackManager
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.schema import Document, TextNode

from acre_rag import Answer, GenerationSettings
from acre_rag.baselines.base import Pipeline, Setting
from acre_rag.errors import ConfigError
from acre_rag.integrations.llama_index.answering import AnsweringEngine
from acre_rag.integrations.llama_index.documents import WholeDocument, cache_name, ref_doc_id_of, text_of
from acre_rag.integrations.llama_index.documents import join_pages as joined
from acre_rag.integrations.llama_index.shelf import Held
from acre_rag.integrations.systems import model_name, pipeline_of
from acre_rag.streams import TextStream


@dataclass(frozen=True, kw_only=True)
class SystemAsking:
    """How a system is asked.

    Attributes:
        pipeline: the system.
        held: the documents asked, with their metadata; `None` for whatever the system holds when it is asked.
        settings: how answers are decoded.
    """

    pipeline: Pipeline
    held: tuple[Held, ...] | None = None
    settings: GenerationSettings | None = None

    def chosen(self) -> list[Held]:
        """The documents asked."""
        if self.held is not None:
            return list(self.held)
        return [Held(id, id, TextNode(id_=id, text=each.text)) for id, each in self.pipeline.documents.items()]

    def ask(self, question: str, held: Sequence[Held]) -> Answer:
        """The system's answer."""
        return self.pipeline.ask(question, [each.name for each in held], settings=self.settings)

    async def aask(self, question: str, held: Sequence[Held]) -> Answer:
        """`ask` on an event loop."""
        return await self.pipeline.aask(question, [each.name for each in held], settings=self.settings)

    def stream(self, question: str, held: Sequence[Held]) -> TextStream[Answer]:
        """The system's answer, piece by piece."""
        return self.pipeline.stream(question, [each.name for each in held], settings=self.settings)


class SystemQueryEngine(AnsweringEngine[SystemAsking]):
    """Asks any system that `acre compare` knows, and any other `Pipeline`.

    A response's `source_nodes` are the text that the system answered from; its `metadata` holds tokens, seconds, scope,
    notes, the digest of every text that was asked, and `trace`: the steps on the way (sub-queries, clues, drafts). A
    stream fills both in when it has ended.

    Args:
        pipeline: the system.
        held: the documents asked, with their metadata; by default those that the system holds when it is asked.
        settings: how answers are decoded.
        streaming: answer with a `StreamingResponse`, from `aquery` with an `AsyncStreamingResponse`.
        callback_manager: LlamaIndex's.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        *,
        held: Sequence[Held] | None = None,
        settings: GenerationSettings | None = None,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        asking = SystemAsking(pipeline=pipeline, held=None if held is None else tuple(held), settings=settings)
        super().__init__(asking, streaming=streaming, callback_manager=callback_manager)

    @classmethod
    def from_documents(
        cls,
        documents: Sequence[Document],
        *,
        system: str | Pipeline,
        setting: Setting | None = None,
        join_pages: bool = False,
        settings: GenerationSettings | None = None,
        streaming: bool = False,
        callback_manager: CallbackManager | None = None,
        **options: Any,
    ) -> "SystemQueryEngine":
        """Read documents, whatever reading means for the system, and ask them. Blank ones are left out.

        Args:
            documents: whole documents; the system splits them as it needs to.
            system: a name of `acre_rag.baselines.registry.SYSTEMS`, or a system that is there already.
            setting: model, template and window of a system that is made; the built-in model by default.
            join_pages: join Documents that name the same file.
            settings: how answers are decoded.
            streaming: as of the constructor.
            callback_manager: LlamaIndex's.
            options: of the system that is made.

        Raises:
            ConfigError: no such system or option.
            DocumentError: two documents have one id.
            CapacityError: too long for this system.
            UnavailableError: it cannot run here.
            MissingExtraError: its packages are not installed.
        """
        pipeline = pipeline_of(system, setting, **options)
        held = []
        for node in WholeDocument()(joined(documents) if join_pages else documents):
            ref_doc_id, text = ref_doc_id_of(node), text_of(node)
            held.append(Held(ref_doc_id, cache_name(ref_doc_id, text), node))
            pipeline.add(text, held[-1].name)
        return cls(pipeline, held=held, settings=settings, streaming=streaming, callback_manager=callback_manager)

    @property
    def pipeline(self) -> Pipeline:
        """The system."""
        return self.asking.pipeline

    @property
    def model(self) -> str:
        """What the user called the model."""
        return model_name(self.pipeline)

    def with_streaming(self, streaming: bool) -> "SystemQueryEngine":
        """The same documents, answered as a whole, or piece by piece."""
        return SystemQueryEngine(
            self.pipeline,
            held=self.asking.held,
            settings=self.asking.settings,
            streaming=streaming,
            callback_manager=self.callback_manager,
        )

    def _metadata(self, answer: Answer, held: Sequence[Held]) -> dict[str, Any]:
        return super()._metadata(answer, held) | {"trace": [asdict(step) for step in answer.trace]}

    def _get_prompts(self) -> PromptDictType:
        return {}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        if prompts:
            raise ConfigError("A system's prompts are those of its Setting: make it with another template.")
