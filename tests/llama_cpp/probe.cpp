// What llama.cpp makes of a GGUF file: token ids of texts, logits of given ids, and a greedy continuation.
//
// Usage: probe MODEL.gguf [ADAPTER.gguf]
// Standard input, a line each: `text WORDS...` (escapes \n, \t, \\), `ids 1 2 3`, `greedy N 1 2 3`.
// Standard output, a line for each: `ids ...`, `logits ...` (all positions, row by row), `greedy ...`.

#include "llama.h"

#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

static std::vector<llama_token> numbers(std::istringstream & line) {
    std::vector<llama_token> found;
    for (llama_token id; line >> id;) {
        found.push_back(id);
    }
    return found;
}

static std::string unescaped(const std::string & text) {
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
        if (text[i] == '\\' && i + 1 < text.size()) {
            ++i;
            out += text[i] == 'n' ? '\n' : text[i] == 't' ? '\t' : text[i] == 'r' ? '\r' : text[i];
        } else {
            out += text[i];
        }
    }
    return out;
}

static void quiet(ggml_log_level level, const char * text, void *) {
    if (level == GGML_LOG_LEVEL_ERROR) {
        fputs(text, stderr);
    }
}

// Run the ids from an empty cache; with `all`, keep the logits of every position.
static bool run(llama_context * ctx, const std::vector<llama_token> & ids, bool all) {
    llama_memory_clear(llama_get_memory(ctx), true);
    llama_batch batch = llama_batch_init((int32_t) ids.size(), 0, 1);
    for (size_t i = 0; i < ids.size(); ++i) {
        batch.token[i]     = ids[i];
        batch.pos[i]       = (llama_pos) i;
        batch.n_seq_id[i]  = 1;
        batch.seq_id[i][0] = 0;
        batch.logits[i]    = all || i + 1 == ids.size();
    }
    batch.n_tokens = (int32_t) ids.size();
    const bool good = llama_decode(ctx, batch) == 0;
    llama_batch_free(batch);
    return good;
}

static llama_token best(const float * logits, int n) {
    int at = 0;
    for (int i = 1; i < n; ++i) {
        if (logits[i] > logits[at]) {
            at = i;
        }
    }
    return at;
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf [ADAPTER.gguf]\n", argv[0]);
        return 2;
    }
    llama_log_set(quiet, nullptr);
    llama_backend_init();
    llama_model_params mparams = llama_model_default_params();
    mparams.n_gpu_layers = 0;
    llama_model * model = llama_model_load_from_file(argv[1], mparams);
    if (!model) {
        return 1;
    }
    llama_context_params cparams = llama_context_default_params();
    cparams.n_ctx           = 128;
    cparams.n_batch         = 128;
    cparams.n_ubatch        = 128;
    cparams.n_threads       = 2;
    cparams.n_threads_batch = 2;
    // The exact sums: caches in f32, and no fused attention.
    cparams.type_k          = GGML_TYPE_F32;
    cparams.type_v          = GGML_TYPE_F32;
    cparams.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context * ctx = llama_init_from_model(model, cparams);
    if (!ctx) {
        return 1;
    }
    if (argc > 2) {
        llama_adapter_lora * adapter = llama_adapter_lora_init(model, argv[2]);
        if (!adapter) {
            return 1;
        }
        float scale = 1.0f;
        if (llama_set_adapters_lora(ctx, &adapter, 1, &scale) != 0) {
            return 1;
        }
    }
    const llama_vocab * vocab = llama_model_get_vocab(model);
    const int n_vocab = llama_vocab_n_tokens(vocab);
    std::string text;
    while (std::getline(std::cin, text)) {
        std::istringstream line(text);
        std::string word;
        line >> word;
        if (word == "text") {
            const std::string given = unescaped(text.substr(text.size() > 5 ? 5 : text.size()));
            std::vector<llama_token> ids(given.size() + 16);
            const int n = llama_tokenize(vocab, given.c_str(), (int32_t) given.size(), ids.data(), (int32_t) ids.size(), true, true);
            printf("ids");
            for (int i = 0; i < n; ++i) {
                printf(" %d", ids[i]);
            }
            printf("\n");
        } else if (word == "ids") {
            const std::vector<llama_token> ids = numbers(line);
            if (!run(ctx, ids, true)) {
                return 1;
            }
            printf("logits");
            for (size_t i = 0; i < ids.size(); ++i) {
                const float * row = llama_get_logits_ith(ctx, (int32_t) i);
                for (int j = 0; j < n_vocab; ++j) {
                    printf(" %.9g", row[j]);
                }
            }
            printf("\n");
        } else if (word == "greedy") {
            int wanted = 0;
            line >> wanted;
            std::vector<llama_token> ids = numbers(line);
            printf("greedy");
            for (int i = 0; i < wanted; ++i) {
                if (!run(ctx, ids, false)) {
                    return 1;
                }
                ids.push_back(best(llama_get_logits_ith(ctx, -1), n_vocab));
                printf(" %d", ids.back());
            }
            printf("\n");
        }
        fflush(stdout);
    }
    llama_free(ctx);
    llama_model_free(model);
    return 0;
}
