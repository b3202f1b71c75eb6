"""A transformer in front of the predictor: it tidies up what clients send.

Shows: a class with `preprocess` alone. KServe appends `--model_name`, `--predictor_host` and
`--http_port` to the arguments of its container, and the command line takes them: the model has the
name of the InferenceService then, and its payloads go to the predictor, whose streams pass through
item by item. Leaves out: `postprocess`, which may wrap a stream as well.

    modelserve examples/13_kserve/transformer.py --http_port 8081 \\
        --model_name writer --predictor_host localhost:8080
"""

from modelserve import Model, ModelServer, instances


class Clean(Model):
    async def preprocess(self, payload: dict) -> dict:
        texts = [" ".join(text.split()) for text in instances(payload, str)]
        return {**payload, "instances": texts}


app = ModelServer([Clean("clean")])
