"""LangChain's own standard suites on the built-in model, no test of theirs changed; what they skip, and why.

The suites ask what a model can do; it answers with properties. SmolLM2-135M in this package reads text and writes text:
it calls no tools, makes no structured output and reads no images, sound or PDF.
"""

from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_tests.integration_tests import ChatModelIntegrationTests, RetrieversIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from acre_rag import ACRE, ACREConfig
from acre_rag.decoder import Decoder
from acre_rag.integrations.langchain import ACRERetriever, ChatACRE

pytestmark = pytest.mark.model

CONFIG = ACREConfig(window=1536, stride=512, passage_tokens=300)
TABLE = "What did Alice find on the three-legged table made of solid glass?"

NO_TOOLS = "Test requires tool calling."
NO_STRUCTURE = "Test requires structured output."
ONE_MODEL = "Model override not supported."

SKIPPED = {
    # The model is a live object in this process: it has no address to be restored from, no key in the environment.
    "test_serdes": "Model is not serializable.",
    "test_init_from_env": "init_from_env_params not specified.",
    # An engine holds one model; another one is another ChatACRE.
    "test_invoke_with_model_override": ONE_MODEL,
    "test_ainvoke_with_model_override": ONE_MODEL,
    "test_stream_with_model_override": ONE_MODEL,
    "test_astream_with_model_override": ONE_MODEL,
    # The built-in model was not trained to call tools; ChatACRE's bind_tools says so.
    "test_tool_calling": NO_TOOLS,
    "test_tool_calling_async": NO_TOOLS,
    "test_bind_runnables_as_tools": NO_TOOLS,
    "test_tool_message_histories_string_content": NO_TOOLS,
    "test_tool_message_histories_list_content": NO_TOOLS,
    "test_tool_choice": "Test requires tool choice.",
    "test_tool_calling_with_no_arguments": NO_TOOLS,
    "test_tool_message_error_status": NO_TOOLS,
    "test_structured_few_shot_examples": NO_TOOLS,
    "test_agent_loop": NO_TOOLS,
    "test_unicode_tool_call_integration": "Test requires tool calling support.",
    # Nor to write what a schema asks.
    "test_structured_output": NO_STRUCTURE,
    "test_structured_output_async": NO_STRUCTURE,
    "test_structured_output_pydantic_2_v1": NO_STRUCTURE,
    "test_structured_output_optional_param": NO_STRUCTURE,
    "test_json_mode": "Test requires json mode support.",
    # It reads text only.
    "test_pdf_inputs": "Model does not support PDF inputs.",
    "test_audio_inputs": "Model does not support audio inputs.",
    "test_image_inputs": "Model does not support image message.",
    "test_image_tool_message": "Model does not support image tool message.",
    "test_pdf_tool_message": "Model does not support PDF tool message.",
    "test_anthropic_inputs": "Model does not explicitly support Anthropic inputs.",
    # There is no network traffic to record.
    "test_stream_time": "VCR not set up.",
}


class Recorder:
    """Notes how each test of this file ended, and says so at the end of the run."""

    def __init__(self) -> None:
        self.passed: list[str] = []
        self.skipped: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "test_langchain_standard.py::Test" not in report.nodeid:
            return
        name = report.location[2].split(".")[-1].split("[")[0]
        if report.skipped and isinstance(report.longrepr, tuple):
            self.skipped[name] = report.longrepr[2].removeprefix("Skipped: ")
        elif report.passed and report.when == "call":
            self.passed.append(name)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.write_line(
            f"langchain-tests on SmolLM2: {len(self.passed)} passed, {len(self.skipped)} different tests skipped "
            "(reasons in test_langchain_standard.py)"
        )


@pytest.fixture(scope="module", autouse=True)
def recorder(request: pytest.FixtureRequest) -> Recorder:
    plugin = Recorder()
    request.config.pluginmanager.register(plugin)
    return plugin


@pytest.fixture(scope="module")
def acre(smollm2: Decoder, alice: str) -> ACRE:
    engine = ACRE(smollm2, config=CONFIG)
    engine.add(alice[:5_000], id="alice")
    return engine


@pytest.fixture(scope="class", autouse=True)
def engine(request: pytest.FixtureRequest, acre: ACRE) -> Iterator[None]:
    """The suites ask for parameters in properties, where no fixture comes: the class holds the engine."""
    if request.cls is not None:
        request.cls.acre = acre
    yield


class Abilities:
    """The suites take a method that is there for an ability: these two only say what to do instead."""

    has_tool_calling = False
    has_structured_output = False


class TestChatUnit(Abilities, ChatModelUnitTests):
    acre: ACRE

    @property
    def chat_model_class(self) -> type[ChatACRE]:
        return ChatACRE

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"acre": self.acre}


class TestChatIntegration(Abilities, ChatModelIntegrationTests):
    acre: ACRE

    @property
    def chat_model_class(self) -> type[ChatACRE]:
        return ChatACRE

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return {"acre": self.acre, "max_tokens": 24}

    @property
    def supports_model_override(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> dict[str, list[str]]:
        return {"invoke": ["cache_read_input"], "stream": ["cache_read_input"]}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        chat = ChatACRE(acre=self.acre, documents=["alice"], max_tokens=8)
        if not stream:
            return chat.invoke(TABLE)
        chunks: list[AIMessageChunk] = list(chat.stream(TABLE))
        return sum(chunks[1:], chunks[0])


class TestRetriever(RetrieversIntegrationTests):
    acre: ACRE

    @property
    def retriever_constructor(self) -> type[ACRERetriever]:
        return ACRERetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"acre": self.acre}

    @property
    def retriever_query_example(self) -> str:
        return TABLE


def test_what_was_skipped_is_what_this_file_says(recorder: Recorder, request: pytest.FixtureRequest) -> None:
    chosen = {item.originalname for item in request.session.items if item.path == request.path}
    assert recorder.skipped == {name: reason for name, reason in SKIPPED.items() if name in chosen}
    assert set(recorder.passed) == chosen - SKIPPED.keys() - {request.node.originalname}
