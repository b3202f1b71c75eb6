"""KServe's names for models of OpenAI's protocol; vllm is not needed.

The hooks `create_completion`, `create_chat_completion` and `create_embedding` of these models are
called with what KServe's SDK calls them with, and may return what they may return there.
"""

from modelserve.kserve.protocol.rest.openai.openai_chat_adapter_model import OpenAIChatAdapterModel
from modelserve.kserve.protocol.rest.openai.openai_model import (
    ChatPrompt,
    OpenAIEncoderModel,
    OpenAIGenerativeModel,
    OpenAIModel,
)
from modelserve.kserve.protocol.rest.openai.openai_proxy_model import OpenAIProxyModel
from modelserve.kserve.protocol.rest.openai.types import (
    ChatCompletionMessageParam,
    ChatCompletionRequest,
    CompletionRequest,
)

__all__ = [
    "ChatCompletionMessageParam",
    "ChatCompletionRequest",
    "ChatPrompt",
    "CompletionRequest",
    "OpenAIChatAdapterModel",
    "OpenAIEncoderModel",
    "OpenAIGenerativeModel",
    "OpenAIModel",
    "OpenAIProxyModel",
]
