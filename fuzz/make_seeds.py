#!/usr/bin/env python3
"""Writes the seeds of fuzz/corpus that are made by hand or from tests/golden: `python3 fuzz/make_seeds.py`.

The names begin with `seed_`. What a fuzzer found lies beside them under other names and is left alone.
"""

import base64
import json
import pathlib
import struct

ROOT = pathlib.Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests/golden"
CORPUS = ROOT / "fuzz/corpus"


def write(target, name, content):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    if not isinstance(content, bytes):
        content = (content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()
    (folder / f"seed_{name}").write_bytes(content)


def safetensors():
    def file(header, body=b""):
        text = json.dumps(header, separators=(",", ":")).encode()
        return struct.pack("<Q", len(text)) + text + body

    tensor = lambda dtype, shape, begin, end: {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    two = {"__metadata__": {"format": "pt"}, "a.weight": tensor("F32", [2, 3], 0, 24), "b": tensor("BF16", [4], 24, 32)}
    write("safetensors", "two", file(two, bytes(32)))
    write("safetensors", "two_header", two)
    write("safetensors", "empty", file({}))
    write("safetensors", "scalar", file({"s": tensor("U8", [], 0, 1)}, b"\x01"))
    write("safetensors", "no_elements", file({"z": tensor("I64", [0, 9], 0, 0), "o": tensor("F64", [1], 0, 8)}, bytes(8)))
    write("safetensors", "types_header", {n: tensor(n, [2, s], 2 * k, 2 * k + 2 * s) for n, s, k in
                                          [("BOOL", 1, 0), ("F8_E4M3", 1, 1), ("F16", 2, 2), ("I32", 4, 4), ("U64", 8, 8)]})
    write("safetensors", "overlap", file({"a": tensor("U8", [4], 0, 4), "b": tensor("U8", [4], 2, 6)}, bytes(6)))
    write("safetensors", "overflow_header", {"a": tensor("F64", [1 << 62, 1 << 62], 0, 8), "b": tensor("U8", [8], (1 << 64) - 8, (1 << 64) - 1)})
    write("safetensors", "cut_off", struct.pack("<Q", 400) + b'{"a":')
    write("safetensors", "lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n")
    write("safetensors", "zip", b"PK\x03\x04\x00\x00")
    write("safetensors", "index", {"metadata": {"total_size": 8}, "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    write("safetensors", "index_outside", {"weight_map": {"a": "../a.safetensors"}})


def adapter():
    q, v = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
    lora = {"peft_type": "LORA", "r": 2, "target_modules": ["q_proj", "v_proj"]}
    pair = lambda path, r, n_in, n_out: {f"{path}.lora_A.weight": [r, n_in], f"{path}.lora_B.weight": [n_out, r]}
    peft = {f"base_model.model.{k}": s for part in (pair(q, 2, 4, 4), pair("model.layers.1.self_attn.q_proj", 2, 4, 4),
            pair("model.layers.0.self_attn.v_proj", 2, 4, 2), pair(v, 2, 4, 2)) for k, s in part.items()}
    renamed = lambda change: {change(k): s for k, s in peft.items()}
    mlx = {"model.layers.0.self_attn.q_proj.lora_a": [4, 2], "model.layers.0.self_attn.q_proj.lora_b": [2, 4]}
    tune = {"layers.0.attn.q_proj.lora_a.weight": [2, 4], "layers.0.attn.q_proj.lora_b.weight": [4, 2]}
    say = lambda name, config, tensors, mlx=False: write("adapter", name, {"config": config, "mlx": mlx, "tensors": tensors})
    say("peft", lora, peft)
    say("default_in_names", lora, renamed(lambda k: k.replace(".weight", ".default.weight")))
    say("no_prefix", lora, renamed(lambda k: k.removeprefix("base_model.model.")))
    say("compiled", lora, renamed(lambda k: "_orig_mod.module." + k))
    say("two_adapters", lora, {**renamed(lambda k: k.replace(".weight", ".a.weight")), **renamed(lambda k: k.replace(".weight", ".b.weight"))})
    say("other_rank", {**lora, "r": 3}, peft)
    say("scalar", lora, {**peft, "base_model.model.lm_head.lora_A.weight": []})
    say("no_values", lora, {**peft, "base_model.model.lm_head.lora_A.weight": [0, 4], "base_model.model.lm_head.lora_B.weight": [4, 0]})
    say("mlx", {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 2.0}}, mlx, True)
    say("mlx_dora", {"fine_tune_type": "dora", "lora_parameters": {"scale": 2.0}}, {**mlx, "model.layers.0.self_attn.q_proj.m": [4]}, True)
    say("mlx_two_ways", {"lora_layers": 2, "lora_parameters": {"rank": 2, "alpha": 16, "scale": 2.0}}, mlx, True)
    say("mlx_negative", {"num_layers": -1, "lora_parameters": {"scale": -1e308}}, mlx, True)
    say("mlx_flat", {"num_layers": 2, "lora_parameters": {"scale": 2.0}}, {"x.lora_a": [3], "x.lora_b": []}, True)
    say("torchtune", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "output_proj"]}, tune)
    say("torchtune_odd_rows", {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}, {**tune, "layers.0.attn.q_proj.lora_b.weight": [3, 2]})
    say("mixed", lora, {**peft, **mlx})
    say("old", {**lora, "enable_lora": None, "merge_weights": False, "fan_in_fan_out": True}, peft)
    say("merged_linear", {**lora, "enable_lora": [True, False]}, peft)
    write("adapter", "raw", json.dumps(lora).encode() + b"\n=====\n" + struct.pack("<Q", 2) + b"{}")
    write("adapter", "cut", json.dumps(lora).encode() + b"\n=====\n" + struct.pack("<Q", 400) + b'{"a":')


def adapter_config():
    for folder in ["lora_all", "lora_all_linear", "lora_bias", "lora_layers", "lora_exclude", "lora_modules_to_save", "lora_patterns", "rslora"]:
        config = json.loads((GOLDEN / "peft" / folder / "adapter_config.json").read_text())
        write("adapter_config", folder, {k: v for k, v in config.items() if v not in (None, False, {}, [])})
    lora = lambda **more: {"peft_type": "LORA", "r": 2, **more}
    write("adapter_config", "regex", lora(target_modules=r"model\.layers\.[01]\.(self_attn\.[qv]|mlp\.up)_proj", exclude_modules="(?!x).*1.*"))
    write("adapter_config", "layers_pattern", lora(target_modules=["q_proj"], layers_to_transform=[0, 1], layers_pattern="layers"))
    write("adapter_config", "gaussian", lora(target_modules="all-linear", init_lora_weights="gaussian", lora_dropout=0.5, lora_alpha=1e300))
    write("adapter_config", "refused", lora(use_dora=True, target_modules=["q_proj"]))
    write("adapter_config", "other_method", {"peft_type": "IA3"})
    write("adapter_config", "mlx", {"lora_parameters": {"rank": 8}})


def config():
    for folder in ["llama3_rope", "llama_dynamic", "llama_yarn", "llama_bias", "mistral", "qwen2_sliding", "qwen3", "smollm_bf16"]:
        for name in ["config", "config.v4"]:
            text = json.loads((GOLDEN / "models" / folder / f"{name}.json").read_text())
            write("config", f"{folder}_{name.replace('.', '_')}", text)
    write("config", "minimal", {"model_type": "llama", "vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2})
    write("config", "huge", {"model_type": "qwen2", "vocab_size": 1 << 24, "hidden_size": 1 << 17, "intermediate_size": 1e300, "num_hidden_layers": 4096, "num_attention_heads": -1})
    write("config", "quantised", {"model_type": "qwen3", "quantization_config": {"quant_method": "gptq"}})
    write("config", "code", {"model_type": "llama", "auto_map": {"AutoModel": "m.M"}})


def template():
    for path in sorted((GOLDEN / "chat/templates").glob("*.jinja")):
        write("template", path.stem, path.read_bytes())
    pieces = {
        "loops": "{% for i in range(3) %}{% if i == 1 %}{% continue %}{% endif %}{{ loop.index }}{% if loop.last %}{% break %}{% endif %}{% else %}none{% endfor %}",
        "namespace": "{% set ns = namespace(x='', n=0) %}{% for m in messages %}{% set ns.x = ns.x ~ m.content %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.x }}",
        "macro": "{% macro f(x, n=2) %}{{ x ~ x }}{% if n > 0 %}{{ f(x, n - 1) }}{% endif %}{% endmacro %}{{ f('a') }}{% call f(1) %}{% endcall %}",
        "methods": "{{ ' aXb '.strip().split('X')|join(', ') }}{{ 'a'.upper().center(8) }}{{ 'x'.replace('', 'y') }}{{ '7'.zfill(3) }}{{ {'a': 1}.items()|list }}",
        "filters": "{{ messages|map(attribute='role')|list|tojson(indent=2) }}{{ 'a b'|title|indent(4) }}{{ [3, 1]|sort|first }}{{ '%s-%d'|format('a', 3) }}{{ [1, 2]|batch(2, 'x')|list }}{{ 'abc'|slice(2)|list }}",
        "slices": "{{ messages[1:] }}{{ messages[::-1] }}{{ 'abc'[-2:] }}{{ [1, 2] + [3] }}{{ 'a' * 3 }}{{ 7 // 2 }}{{ 2 ** 8 }}{{ 7 % 3 }}",
        "raise": "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}{{ strftime_now('%d %b %Y') }}{{ bos_token }}",
        "generation": "{% for m in messages %}{{ m.role }}:{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% endfor %}",
        "tools": "{% for t in tools %}{{ t|tojson }}{% endfor %}{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.arguments|items }}{% endfor %}{% endfor %}",
        "with": "{% with a = messages|length, b = [] %}{{ a }}{{ b is defined and b is not none }}{% endwith %}{% filter upper %}x{% endfilter %}{% raw %}{{ x }}{% endraw %}{# c #}",
        "block_set": "{% set x %}{% for m in messages %}{{ m.content }}{% endfor %}{% endset %}{{- x -}}{{ x|length }}",
    }
    for name, source in pieces.items():
        write("template", name, source)


def tokenizer():
    added = lambda i, content, **more: {"id": i, "content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True, **more}
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "add_bos_token": True,
              "added_tokens_decoder": {"9": {"content": "<x>", "special": True}},
              "chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"}

    def make(name, model, extra=None, files=()):
        whole = {"version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
                 "pre_tokenizer": None, "post_processor": None, "decoder": None, "model": model, **(extra or {})}
        parts = [json.dumps(part, ensure_ascii=False) for part in (whole, *files)]
        write("tokenizer", name, "\n=====\n".join(parts))

    bpe = {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None, "end_of_word_suffix": None,
           "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
           "vocab": {"<unk>": 0, "<s>": 1, "</s>": 2, "a": 3, "l": 4, "o": 5, "aa": 6, "lo": 7, "<0xE5>": 8}, "merges": [["a", "a"], ["l", "o"]]}
    specials = [added(1, "<s>"), added(2, "</s>", lstrip=True)]
    template = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    # A table of sentencepiece's: the bytes of a trie, the trie, the replacements. This one has no entry.
    nothing_mapped = base64.b64encode(struct.pack("<I", 1024) + bytes(1024)).decode()
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    make("bpe", bpe, {"added_tokens": specials, "post_processor": template}, [config, {"eos_token_id": [2, 5]}])
    make("bpe_byte_level", {**bpe, "byte_fallback": False, "dropout": 0.5}, {"pre_tokenizer": byte_level, "decoder": byte_level, "post_processor": byte_level})
    make("bpe_sentencepiece", {**bpe, "merges": ["a a", "l o"]}, {
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u2581"}, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}]},
        "decoder": {"type": "Sequence", "decoders": [{"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}})
    make("bpe_saved_run", bpe, {"truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 1},
                                "padding": {"strategy": {"Fixed": 8}, "direction": "Left", "pad_to_multiple_of": 4, "pad_id": 0, "pad_type_id": 0, "pad_token": "<unk>"}})
    make("wordpiece", {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 20, "vocab": {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "hello": 3, "##lo": 4, "a": 5, "##a": 6}},
         {"normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None, "lowercase": True}, "pre_tokenizer": {"type": "BertPreTokenizer"},
          "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 2], "cls": ["[CLS]", 1]}, "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True}})
    make("wordlevel", {"type": "WordLevel", "vocab": {"<unk>": 0, "Hello": 1, "in": 2}, "unk_token": "<unk>"},
         {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKD"}, {"type": "StripAccents"}, {"type": "Nmt"}, {"type": "Strip", "strip_left": True, "strip_right": True}]},
          "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, {"type": "Digits", "individual_digits": True}, {"type": "Punctuation", "behavior": "Isolated"}]},
          "post_processor": {"type": "RobertaProcessing", "sep": ["in", 2], "cls": ["Hello", 1], "trim_offsets": True, "add_prefix_space": False}, "decoder": {"type": "BPEDecoder", "suffix": "</w>"}})
    make("unigram", {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["\u2581", -1.5], ["a", -2.0], ["aa", -2.5], ["<0xE5>", -9.0]], "byte_fallback": True},
         {"pre_tokenizer": metaspace, "decoder": metaspace, "normalizer": {"type": "Precompiled", "precompiled_charsmap": nothing_mapped}})
    make("split", bpe, {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "(?i:'s|'t)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|\\s+(?!\\S)|\\s+"}, "behavior": "MergedWithNext", "invert": False},
        {"type": "CharDelimiterSplit", "delimiter": "l"}, {"type": "UnicodeScripts"}, {"type": "WhitespaceSplit"}, {"type": "FixedLength", "length": 5}]},
        "normalizer": {"type": "Replace", "pattern": {"Regex": "l+"}, "content": "L"}, "decoder": {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True}})
    make("added", bpe, {"added_tokens": [added(9, "Hello", special=False, normalized=True, single_word=True), added(10, "  ", rstrip=True), added(11, "\u5317")],
                        "normalizer": {"type": "ByteLevel"}, "post_processor": {"type": "Sequence", "processors": [byte_level, template]}})
    make("no_config", bpe, None, [{}, {"eos_token_id": 2}])
    make("wrong_fields", bpe, None, [{"bos_token": 3, "added_tokens_decoder": {"x": 1}}])
    for folder in ["tokenizer_chatml", "tokenizer_gemma"]:
        parts = [json.dumps(json.loads((GOLDEN / "chat" / folder / name).read_text()), ensure_ascii=False, separators=(",", ":")) for name in ["tokenizer.json", "tokenizer_config.json"]]
        write("tokenizer", folder, "\n=====\n".join(parts))


def gguf():
    text = lambda value: struct.pack("<Q", len(value.encode())) + value.encode()

    def scalar(value):
        """The number of the type, and the bytes."""
        if isinstance(value, bool):
            return 7, bytes([value])
        if isinstance(value, int):
            return (4, struct.pack("<I", value)) if value >= 0 else (5, struct.pack("<i", value))
        if isinstance(value, float):
            return 6, struct.pack("<f", value)
        return 8, text(value)

    def value(given):
        if not isinstance(given, list):
            kind, data = scalar(given)
            return struct.pack("<I", kind) + data
        items = [scalar(item) for item in given] if given and isinstance(given[0], str) else [(5, struct.pack("<i", x)) if isinstance(x, int) and not isinstance(x, bool) else scalar(x) for x in given]
        return struct.pack("<IIQ", 9, items[0][0] if items else 4, len(items)) + b"".join(data for _, data in items)

    def file(keys, tensors=(), version=3):
        head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys)) + b"".join(text(k) + value(v) for k, v in keys.items())
        data = b""
        for name, kind, shape in tensors:
            count = 1
            for size in shape:
                count *= size
            head += text(name) + struct.pack("<I", len(shape)) + b"".join(struct.pack("<Q", s) for s in reversed(shape)) + struct.pack("<IQ", kind, len(data))
            data += bytes({0: 4 * count, 1: 2 * count, 8: count // 32 * 34}[kind])
            data += bytes(-len(data) % 32)
        return head + bytes(-len(head) % 32) + data

    def both(name, keys, tensors=()):
        write("gguf", name, file(keys, tensors))
        write("gguf", f"{name}_described", {"keys": keys, "tensors": list(tensors)})

    def model(architecture, **more):
        key = lambda name: f"{architecture}.{name}"
        return {"general.architecture": architecture, key("context_length"): 128, key("embedding_length"): 32, key("block_count"): 1, key("feed_forward_length"): 48,
                key("attention.head_count"): 4, key("attention.head_count_kv"): 2, key("attention.layer_norm_rms_epsilon"): 1e-6, key("rope.freq_base"): 1e4,
                **{key(name.replace("__", ".")): v for name, v in more.items()}}

    byte_level = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.tokens": ["a", "b", "ab", "<s>", "<tool>", "[PAD5]", "left"],
                  "tokenizer.ggml.token_type": [1, 1, 1, 3, 4, 5, 5], "tokenizer.ggml.merges": ["a b"], "tokenizer.ggml.bos_token_id": 3, "tokenizer.ggml.eos_token_id": 3,
                  "tokenizer.chat_template": "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"}
    pieces = {"tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", "\u2581", "a", "\u2581a", "  ", "<0x0A>", "aa"],
              "tokenizer.ggml.scores": [0.0, 0.0, 0.0, -9.0, -8.0, -1.0, -1000.0, 0.0, -0.5], "tokenizer.ggml.token_type": [2, 3, 3, 1, 1, 1, 4, 6, 1],
              "tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.unknown_token_id": 0}
    weights = [("token_embd.weight", 0, [8, 32]), ("blk.0.attn_q.weight", 8, [32, 32]), ("blk.0.attn_norm.weight", 0, [32]), ("output.weight", 1, [8, 32])]
    both("llama", {**model("llama", rope__dimension_count=8), **byte_level}, weights)
    both("llama_pieces", {**model("llama", rope__scaling__type="linear", rope__scaling__factor=2.0), **pieces}, weights + [("rope_freqs.weight", 0, [4])])
    both("qwen2", {**model("qwen2", rope__scaling__type="yarn", rope__scaling__factor=4.0, rope__scaling__original_context_length=32), **byte_level, "tokenizer.ggml.pre": "qwen2"}, [("blk.0.attn_k.bias", 0, [16])])
    both("qwen3moe", {**model("qwen3moe", expert_count=2, expert_used_count=1, expert_feed_forward_length=16, attention__key_length=8)}, [("blk.0.ffn_up_exps.weight", 0, [2, 16, 32])])
    both("gemma2", {**model("gemma2", attention__sliding_window=64, attn_logit_softcapping=50.0, final_logit_softcapping=30.0, attention__key_length=8), **pieces}, weights[:1])
    both("gemma3", {**model("gemma3", attention__sliding_window=64, attention__key_length=8, rope__scaling__type="linear", rope__scaling__factor=8.0), **pieces}, weights[:1])
    both("phi3", {**model("phi3", rope__dimension_count=8, rope__scaling__original_context_length=64), **pieces}, [("rope_factors_long.weight", 0, [4]), ("rope_factors_short.weight", 0, [4])])
    both("granite", {**model("granite", attention__scale=0.5, embedding_scale=12.0, residual_scale=0.2, logit_scale=8.0), **byte_level, "tokenizer.ggml.pre": "refact"}, weights[:1])
    both("olmo2", model("olmo2"), weights[:1])
    write("gguf", "version_2", file({"a": 1, "b": [True], "c": [], "d": [0.5]}, version=2))
    write("gguf", "split", file({"split.count": 3}))
    write("gguf", "cut_off", file(model("llama"), weights)[:200])
    write("gguf", "many", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60))


if __name__ == "__main__":
    for make in [safetensors, adapter, adapter_config, config, template, tokenizer, gguf]:
        make()
