"""lm-evaluation-harness over `local-completions` and `local-chat-completions`: the scores it comes to are the reference's."""
from pathlib import Path

import pytest

from questions import MODELS

HERE = Path(__file__).parent
CLOSE = 5e-3


@pytest.fixture(scope="module")
def evaluate(server, folder, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    # The tasks name their data relative to here; what `datasets` keeps is not to be found next time.
    patch.chdir(HERE)
    patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hf")))
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(HERE / "tasks"), include_defaults=False)

    def evaluate(kind, model, tasks, chat=False, **options):
        address = "chat/completions" if kind == "local-chat-completions" else "completions"
        options = {"base_url": f"{server.url}/v1/{address}", "max_retries": 1, "max_length": 1024, "model": model, **options}
        if kind == "local-completions":
            options = {"tokenizer": str(folder / "base"), **options}
        told = lm_eval.simple_evaluate(
            model=kind, model_args=options, tasks=tasks, task_manager=manager, apply_chat_template=chat,
            log_samples=True, bootstrap_iters=0, random_seed=1,
        )
        for samples in told["samples"].values():
            assert len(samples) == 20
        return told

    yield evaluate
    patch.undo()


def split(reference, context, continuation):
    """The ids of both, as lm-eval cuts them: spaces between the two belong to the second."""
    spaces = len(context) - len(context.rstrip())
    if spaces:
        context, continuation = context[:-spaces], context[-spaces:] + continuation
    whole, first = reference.encode(context + continuation), reference.encode(context)
    return first, whole[len(first) :]


WAYS = {
    "ids, eight at a time": {"tokenizer_backend": "huggingface", "tokenized_requests": True, "num_concurrent": 8},
    # The default: it asks the server for a tokenizer first.
    "texts, four in a request": {"tokenizer_backend": "auto", "tokenized_requests": False, "num_concurrent": 1, "batch_size": 4},
}


@pytest.mark.parametrize("model", ["base", "red"])
@pytest.mark.parametrize("way", WAYS)
def test_log_likelihoods_are_the_references(evaluate, reference, model, way):
    told = evaluate("local-completions", model, ["completing", "reading"], **WAYS[way])
    right, greedy = 0, 0
    for sample in told["samples"]["completing"]:
        scores = []
        for pair, answer in zip(sample["arguments"], sample["resps"], strict=True):
            score, is_greedy = reference.score(*split(reference, *pair), MODELS[model])
            assert float(answer[0][0]) == pytest.approx(score, abs=CLOSE), pair
            assert str(answer[0][1]) == str(is_greedy), pair
            scores.append(score)
            greedy += is_greedy
        right += scores.index(max(scores)) == sample["doc"]["answer"]
    assert told["results"]["completing"]["acc,none"] == pytest.approx(right / 20)
    if model == "base":
        # Neither all nor none, or the comparison would say little.
        assert 4 <= right < 20
    prefix = [reference.tokenizer.token_to_id("<|im_end|>")]
    for sample in told["samples"]["reading"]:
        score, _ = reference.score(prefix, reference.encode(sample["arguments"][0][0]), MODELS[model])
        answer = sample["resps"][0][0]
        assert float(answer[0] if isinstance(answer, (tuple, list)) else answer) == pytest.approx(score, abs=5 * CLOSE)


@pytest.mark.parametrize("model", ["base", "blue"])
def test_what_is_generated_is_the_references(evaluate, reference, model):
    """Through both addresses: one renders the template in the harness, the other in the server."""
    whole = evaluate("local-completions", model, ["copying"], chat=True, num_concurrent=4)
    chat = evaluate("local-chat-completions", model, ["copying"], chat=True, num_concurrent=4, eos_string="<|im_end|>")
    right = 0
    for one, other in zip(whole["samples"]["copying"], chat["samples"]["copying"], strict=True):
        prompt = reference.chat_ids([{"role": "user", "content": f"Copy this: {one['doc']['words']}"}])
        expected = reference.decode(reference.greedy(prompt, 12, MODELS[model])).split("\n")[0]
        assert one["resps"] == other["resps"] == [[expected]]
        right += expected == one["doc"]["words"]
    for told in [whole, chat]:
        assert told["results"]["copying"]["exact_match,none"] == pytest.approx(right / 20)
