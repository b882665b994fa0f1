"""Prompts that are asked in several tests."""

SYSTEM = {"role": "system", "content": "You answer in one sentence."}
QUESTIONS = ["Where is my order?", "Tell me about the red house.", "Copy this: blue, green, 7.", "What is a river?"]
CONVERSATIONS = [[{"role": "user", "content": question}] for question in QUESTIONS] + [
    [SYSTEM, {"role": "user", "content": QUESTIONS[0]}],
    [SYSTEM, *({"role": role, "content": text} for role, text in [("user", "Hello"), ("assistant", "Hello!"), ("user", "Who?")])],
]
# model ids and the adapters that they stand for
MODELS = {"base": (), "red": (("red", 1.0),), "blue": (("blue", 1.0),), "base:red": (("red", 1.0),)}
