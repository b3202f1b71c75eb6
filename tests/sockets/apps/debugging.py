"""The models of v1, with debugging on."""

from apps import v1

from modelserve import ModelServer

app = ModelServer([v1.Plain("plain")], debug=True)
app.model("errors")(v1.errors)
app.model("async-errors")(v1.async_errors)
