//! Fields that are known and not served: each is refused unless it says what is done anyway, so that nobody relies on it in vain.

use crate::fields::Fields;
use serde_json::{Value, json};

/// Of both kinds of requests: vLLM's extras.
pub(super) fn refuse_common(fields: &mut Fields<'_>) {
    let off = || vec![json!(false)];
    let table: [(&str, Vec<Value>, &str); 16] = [
        ("best_of", vec![json!(1)], ": ask for `n` texts"),
        ("use_beam_search", off(), ""),
        ("length_penalty", vec![json!(1), json!(1.0)], ""),
        ("early_stopping", off(), ""),
        ("include_stop_str_in_output", off(), ""),
        ("skip_special_tokens", vec![json!(true)], ""),
        ("spaces_between_special_tokens", vec![json!(true), json!(false)], ""),
        ("truncate_prompt_tokens", vec![], ": cut the prompt before it is sent"),
        ("prompt_logprobs", vec![], ": /v1/completions tells those of the prompt with `echo` and `logprobs`"),
        ("bad_words", vec![], ": use `logit_bias`"),
        ("allowed_token_ids", vec![], ": use `guided_choice`"),
        ("return_tokens_as_token_ids", off(), ""),
        ("return_token_ids", off(), ""),
        ("logits_processors", vec![], ""),
        ("guided_grammar", vec![], ": use `guided_regex` or `response_format`"),
        ("priority", vec![json!(0)], ""),
    ];
    for (key, neutral, instead) in table {
        fields.unserved(key, &neutral, instead);
    }
}

/// Of conversations.
pub(super) fn refuse_in_chat(fields: &mut Fields<'_>) {
    refuse_common(fields);
    let table: [(&str, Vec<Value>, &str); 12] = [
        ("functions", vec![], ": use `tools`"),
        ("function_call", vec![json!("none"), json!("auto")], ": use `tool_choice`"),
        ("modalities", vec![json!(["text"])], ": answers are text"),
        ("audio", vec![], ""),
        ("prediction", vec![], ""),
        ("web_search_options", vec![], ""),
        ("store", vec![json!(false)], ": nothing is kept"),
        ("service_tier", vec![json!("auto"), json!("default")], ""),
        ("verbosity", vec![], ""),
        ("echo", vec![json!(false)], ": use /v1/completions"),
        ("chat_template", vec![], ": the checkpoint's own is used"),
        ("documents", vec![], ""),
    ];
    for (key, neutral, instead) in table {
        fields.unserved(key, &neutral, instead);
    }
}
