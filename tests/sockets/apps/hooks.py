"""Models that return what their hooks were given, in what order."""

from collections.abc import MutableMapping

from modelserve import InvalidInput, Model, ModelServer


class PayloadOnly(Model):
    def predict(self, anything):
        return {"payload": anything}


class WithHeaders(Model):
    def predict(self, payload, headers):
        return {"payload": payload, "mine": headers["x-mine"]}


class WithDefault(Model):
    async def predict(self, payload, headers=None):
        return {"payload": payload, "mine": headers["x-mine"]}


class WithBoth(Model):
    def predict(self, payload, headers=None, response_headers=None):
        response_headers["x-set"] = "1"
        return {"payload": payload, "mine": headers["x-mine"]}


class Swapped(Model):
    def predict(self, payload, response_headers, headers):
        response_headers["x-set"] = "1"
        return {"payload": payload, "mine": headers["x-mine"]}


class ResponseHeadersOnly(Model):
    async def predict(self, payload, response_headers):
        response_headers["x-set"] = "1"
        return {"payload": payload, "mine": "yes"}


class KeywordOnly(Model):
    def predict(self, payload, *, headers, response_headers=None):
        response_headers["x-set"] = "1"
        return {"payload": payload, "mine": headers["x-mine"]}


class PositionalOnly(Model):
    def predict(self, payload, /, headers):
        return {"payload": payload, "mine": headers["x-mine"]}


class OtherDefault(Model):
    def predict(self, payload, headers=None, temperature=0.5):
        return {"payload": payload, "mine": headers["x-mine"], "temperature": temperature}


class Arguments(Model):
    def predict(self, *args, **kwargs):
        given = [*args[1:], *kwargs.values()]
        for mapping in given:
            if "x-mine" in mapping:
                mine = mapping["x-mine"]
            else:
                mapping["x-set"] = "1"
        return {"payload": args[0], "mine": mine, "number": len(given)}


class Keywords(Model):
    def predict(self, payload, **kwargs):
        kwargs["response_headers"]["x-set"] = "1"
        return {"payload": payload, "mine": kwargs["headers"]["x-mine"], "names": sorted(kwargs)}


class Positions(Model):
    def predict(self, *args):
        return {"payload": args[0], "number": len(args)}


class Static(Model):
    @staticmethod
    def predict(payload, headers):
        return {"payload": payload, "mine": headers["x-mine"]}


class OfClass(Model):
    @classmethod
    async def predict(cls, payload, headers):
        return {"payload": payload, "mine": headers["x-mine"]}


class Ordered(Model):
    """Each hook adds its name, in a mixture of sync and async."""

    def preprocess(self, payload, headers=None):
        headers["X-Preprocessed"] = "yes"
        return {"trace": [*payload, "preprocess"]}

    async def predict(self, payload, headers=None, response_headers=None):
        response_headers["x-predicted"] = headers["x-preprocessed"]
        return {"trace": [*payload["trace"], "predict"]}

    def explain(self, payload, headers=None):
        return {"trace": [*payload["trace"], "explain"]}

    def postprocess(self, result, headers=None, response_headers=None):
        response_headers["x-postprocessed"] = headers["x-preprocessed"]
        return {"trace": [*result["trace"], "postprocess"]}


class Reversed(Ordered):
    """The same, sync where the other is async."""

    async def preprocess(self, payload, headers=None):
        return super().preprocess(payload, headers)

    def predict(self, payload, headers=None, response_headers=None):
        response_headers["x-predicted"] = headers["x-preprocessed"]
        return {"trace": [*payload["trace"], "predict"]}

    async def explain(self, payload, headers=None):
        return super().explain(payload, headers)

    async def postprocess(self, result, headers=None, response_headers=None):
        return super().postprocess(result, headers, response_headers)


class Mapping(Model):
    """Uses its headers in all the ways of a mutable mapping."""

    def predict(self, payload, headers=None):
        facts = {
            "mapping": isinstance(headers, MutableMapping),
            "lower": all(name == name.lower() for name in headers),
            "any case": headers["X-MINE"] == headers["x-mine"] == headers.get("X-Mine"),
            "contains": "X-Mine" in headers and "x-none" not in headers,
            "missing": headers.get("x-none"),
            "items": dict(headers.items())["x-mine"],
            "length": len(headers) == len(list(headers)) == len(headers.keys()),
            "twice": headers.get("x-twice"),
        }
        headers["X-New"] = "1"
        headers.update({"X-Other": "2"})
        facts["written"] = [headers["x-new"], headers["X-OTHER"], "x-new" in list(headers)]
        facts["popped"] = headers.pop("X-Mine")
        del headers["x-other"]
        facts["deleted"] = ["x-mine" in headers, "x-other" in headers]
        try:
            headers["x-none"]
        except KeyError:
            facts["key error"] = True
        return facts


class Failing(Model):
    """Fails in the hook that the payload names."""

    def preprocess(self, payload):
        return self.pass_on(payload, "preprocess")

    async def predict(self, payload):
        return self.pass_on(payload, "predict")

    def postprocess(self, result):
        return self.pass_on(result, "postprocess")

    def pass_on(self, payload, name):
        if payload == name:
            raise InvalidInput(f"wrong in {name}")
        return payload


class SetsHeadersAndFails(Model):
    def predict(self, payload, response_headers=None):
        response_headers["x-set"] = "1"
        response_headers["content-type"] = "text/csv"
        raise ValueError("secret")


app = ModelServer(
    [
        PayloadOnly("payload-only"),
        WithHeaders("with-headers"),
        WithDefault("with-default"),
        WithBoth("with-both"),
        Swapped("swapped"),
        ResponseHeadersOnly("response-headers-only"),
        KeywordOnly("keyword-only"),
        PositionalOnly("positional-only"),
        OtherDefault("other-default"),
        Arguments("arguments"),
        Keywords("keywords"),
        Positions("positions"),
        Static("static"),
        OfClass("of-class"),
        Ordered("ordered"),
        Reversed("reversed"),
        Mapping("mapping"),
        Failing("failing"),
        SetsHeadersAndFails("sets-headers-and-fails"),
    ]
)


@app.model("function")
def function(payload, headers):
    return {"payload": payload, "mine": headers["x-mine"]}


@app.model("lambda")
async def coroutine(payload, *, response_headers):
    response_headers["x-set"] = "1"
    return {"payload": payload}
