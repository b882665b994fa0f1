//! Lists of messages, as the OpenAI API and ShareGPT write them.

use crate::fault::{ROLES, RowFault, SHAREGPT_ROLES};
use crate::section::Supervision;
use crate::strict::type_name;
use serde_json::{Map, Value, json};
use taper_text::{Content, Message};

/// A fault and the key inside the row.
pub(crate) type KeyedFault = (String, RowFault);

/// A conversation as it goes into an example.
#[derive(Debug, PartialEq)]
pub(crate) struct Turns {
    pub(crate) messages: Vec<Message>,
    pub(crate) last_turn_only: bool,
}

/// `messages`: a list of `{role, content, ...}`. Text parts become one string, arguments of tool calls become objects,
/// `developer` becomes `system`; other keys go to the template as they are.
pub(crate) fn read_messages(key: &str, value: &Value, supervise: Supervision) -> Result<Turns, KeyedFault> {
    let list = non_empty_list(key, value, "the list of messages")?;
    let mut messages = Vec::with_capacity(list.len());
    let mut weights = Vec::with_capacity(list.len());
    for (index, item) in list.iter().enumerate() {
        let at = format!("{key}[{index}]");
        let mut object = object(&at, item)?.clone();
        let role = read_role(&at, &object)?;
        object.shift_remove("role");
        weights.push(take_weight(&at, &mut object)?);
        if let Some(calls) = object.get_mut("tool_calls").filter(|calls| !calls.is_null()) {
            normalise_tool_calls(&format!("{at}.tool_calls"), calls)?;
        }
        let content = read_content(&at, object.shift_remove("content"))?;
        messages.push(Message { role, content, extra: object });
    }
    let last_turn_only = only_last_has_weight(key, &messages, &weights, supervise)?;
    Ok(Turns { messages, last_turn_only })
}

/// `conversations`: a list of `{from, value}`. A `function_call` becomes an assistant message with a tool call, an
/// `observation` a tool message.
pub(crate) fn read_sharegpt(key: &str, value: &Value) -> Result<Turns, KeyedFault> {
    let list = non_empty_list(key, value, "the list of turns")?;
    let messages = list.iter().enumerate().map(|(index, item)| {
        let at = format!("{key}[{index}]");
        let object = object(&at, item)?;
        let from = string(&at, object, "from")?;
        let text = string(&at, object, "value")?;
        let message = match from {
            "human" | "user" => Message::new("user", text),
            "gpt" | "assistant" | "chatgpt" => Message::new("assistant", text),
            "system" => Message::new("system", text),
            "observation" | "tool" => Message::new("tool", text),
            "function_call" => tool_call_message(&format!("{at}.value"), text)?,
            other => {
                let fault = RowFault::UnknownRole { role: other.to_owned(), allowed: &SHAREGPT_ROLES };
                return Err((format!("{at}.from"), fault));
            }
        };
        Ok(message)
    });
    Ok(Turns { messages: messages.collect::<Result<_, _>>()?, last_turn_only: false })
}

/// What holds for every conversation that is to be learned from.
pub(crate) fn check_turns(key: &str, messages: &[Message]) -> Result<(), KeyedFault> {
    for (index, message) in messages.iter().enumerate() {
        let at = format!("{key}[{index}]");
        if message.role == "system" && index > 0 {
            return Err((at, RowFault::LateSystem { place: index + 1 }));
        }
        let speaks = matches!(message.role.as_str(), "user" | "assistant");
        let silent = message.text().is_none_or(|text| text.trim().is_empty());
        if speaks && silent && !message.has_tool_calls() {
            return Err((at, RowFault::Empty { what: "the content of the message" }));
        }
    }
    match messages.last() {
        Some(last) if last.is_assistant() => Ok(()),
        Some(last) => {
            let at = format!("{key}[{}]", messages.len() - 1);
            Err((at, RowFault::NoFinalAnswer { role: last.role.clone() }))
        }
        None => Err((key.to_owned(), RowFault::Empty { what: "the list of messages" })),
    }
}

/// `tools`: a list, or a string that holds one in JSON. Bare function descriptions get their OpenAI wrapping.
pub(crate) fn read_tools(key: &str, value: &Value) -> Result<Vec<Value>, KeyedFault> {
    let wrong = |found: &Value| {
        let expected = "a list of tools, or a string that holds one in JSON";
        (key.to_owned(), RowFault::WrongType { expected, found: type_name(found) })
    };
    let list = match value {
        Value::Null => return Ok(Vec::new()),
        Value::String(text) if text.trim().is_empty() => return Ok(Vec::new()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Array(list)) => list,
            _ => return Err(wrong(value)),
        },
        Value::Array(list) => list.clone(),
        other => return Err(wrong(other)),
    };
    let wrap = |(index, tool): (usize, Value)| match &tool {
        Value::Object(map) if map.contains_key("type") || !map.contains_key("name") => Ok(tool),
        Value::Object(_) => Ok(json!({ "type": "function", "function": tool })),
        other => {
            let fault = RowFault::WrongType { expected: "an object", found: type_name(other) };
            Err((format!("{key}[{index}]"), fault))
        }
    };
    list.into_iter().enumerate().map(wrap).collect()
}

/// A column or key that must be a string.
pub(crate) fn string<'a>(
    at: &str,
    object: &'a Map<String, Value>,
    key: &'static str,
) -> Result<&'a str, KeyedFault> {
    match object.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => {
            let fault = RowFault::WrongType { expected: "a string", found: type_name(other) };
            Err((format!("{at}.{key}"), fault))
        }
        None => Err((format!("{at}.{key}"), RowFault::WrongType { expected: "a string", found: "nothing" })),
    }
}

fn non_empty_list<'a>(key: &str, value: &'a Value, what: &'static str) -> Result<&'a [Value], KeyedFault> {
    match value {
        Value::Array(list) if list.is_empty() => Err((key.to_owned(), RowFault::Empty { what })),
        Value::Array(list) => Ok(list),
        other => {
            let fault = RowFault::WrongType { expected: "a list of messages", found: type_name(other) };
            Err((key.to_owned(), fault))
        }
    }
}

fn object<'a>(at: &str, value: &'a Value) -> Result<&'a Map<String, Value>, KeyedFault> {
    value.as_object().ok_or_else(|| {
        (at.to_owned(), RowFault::WrongType { expected: "an object", found: type_name(value) })
    })
}

fn read_role(at: &str, object: &Map<String, Value>) -> Result<String, KeyedFault> {
    match string(at, object, "role")? {
        "developer" => Ok("system".to_owned()),
        role if ROLES.contains(&role) => Ok(role.to_owned()),
        role => {
            let fault = RowFault::UnknownRole { role: role.to_owned(), allowed: &ROLES };
            Err((format!("{at}.role"), fault))
        }
    }
}

fn read_content(at: &str, content: Option<Value>) -> Result<Content, KeyedFault> {
    match content {
        None => Ok(Content::Absent),
        Some(Value::Null) => Ok(Content::Null),
        Some(Value::String(text)) => Ok(Content::Text(text)),
        Some(Value::Array(parts)) => join_parts(&format!("{at}.content"), &parts).map(Content::Text),
        Some(other) => {
            let expected = "a string or a list of text parts";
            Err((format!("{at}.content"), RowFault::WrongType { expected, found: type_name(&other) }))
        }
    }
}

/// Parts are `{"type": "text", "text": ...}`; some writers say `value` for `text`.
fn join_parts(at: &str, parts: &[Value]) -> Result<String, KeyedFault> {
    let mut joined = String::new();
    for (index, part) in parts.iter().enumerate() {
        let at = format!("{at}[{index}]");
        let object = object(&at, part)?;
        let kind = string(&at, object, "type")?;
        if kind != "text" {
            return Err((at, RowFault::NotText { kind: kind.to_owned() }));
        }
        let key = if object.contains_key("value") && !object.contains_key("text") { "value" } else { "text" };
        joined.push_str(string(&at, object, key)?);
    }
    Ok(joined)
}

/// Templates write arguments with `tojson`, so they must be an object; the API sends them as a string.
fn normalise_tool_calls(at: &str, calls: &mut Value) -> Result<(), KeyedFault> {
    let found = type_name(calls);
    let Value::Array(list) = calls else {
        return Err((at.to_owned(), RowFault::WrongType { expected: "a list of tool calls", found }));
    };
    for (index, call) in list.iter_mut().enumerate() {
        let at = format!("{at}[{index}].function.arguments");
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            let fault =
                RowFault::WrongType { expected: "an object with a `function`", found: type_name(call) };
            return Err((at, fault));
        };
        if let Some(arguments) = function.get_mut("arguments") {
            *arguments = decode_arguments(arguments).map_err(|fault| (at, fault))?;
        }
    }
    Ok(())
}

fn decode_arguments(arguments: &Value) -> Result<Value, RowFault> {
    let found = match arguments {
        Value::Object(_) => return Ok(arguments.clone()),
        Value::String(text) => match serde_json::from_str(text) {
            Ok(Value::Object(map)) => return Ok(Value::Object(map)),
            Ok(Value::String(_)) => "a string that holds another JSON string: encoded twice".to_owned(),
            Ok(other) => format!("a string that holds {}", type_name(&other)),
            Err(error) => format!("a string that is not JSON ({error})"),
        },
        other => type_name(other).to_owned(),
    };
    Err(RowFault::ToolArguments { found })
}

fn tool_call_message(at: &str, text: &str) -> Result<Message, KeyedFault> {
    let fault = |found: String| (at.to_owned(), RowFault::ToolArguments { found });
    let call: Value =
        serde_json::from_str(text).map_err(|error| fault(format!("text that is not JSON ({error})")))?;
    let calls = match call {
        Value::Array(calls) => calls,
        one => vec![one],
    };
    let wrap = |mut call: Value| -> Result<Value, KeyedFault> {
        if call.get("name").and_then(Value::as_str).is_none() {
            return Err(fault("without a `name`".into()));
        }
        if let Some(arguments) = call.get_mut("arguments") {
            *arguments = decode_arguments(arguments).map_err(|fault| (at.to_owned(), fault))?;
        }
        Ok(json!({ "type": "function", "function": call }))
    };
    let calls = calls.into_iter().map(wrap).collect::<Result<Vec<_>, _>>()?;
    let mut message = Message::new("assistant", "");
    message.extra.insert("tool_calls".into(), Value::Array(calls));
    Ok(message)
}

/// `weight` (OpenAI) or `loss_weight`: whether a message is learned.
fn take_weight(at: &str, object: &mut Map<String, Value>) -> Result<Option<f64>, KeyedFault> {
    for key in ["weight", "loss_weight"] {
        match object.shift_remove(key) {
            None | Some(Value::Null) => {}
            Some(value) => match value.as_f64() {
                Some(weight) if weight == 0.0 || weight == 1.0 => return Ok(Some(weight)),
                _ => {
                    let fault = RowFault::MessageWeight { key, weight: value.to_string() };
                    return Err((format!("{at}.{key}"), fault));
                }
            },
        }
    }
    Ok(None)
}

/// Weights that say what a setting can say: assistant turns 1 and the others 0, or only the last turn 1.
fn only_last_has_weight(
    key: &str,
    messages: &[Message],
    weights: &[Option<f64>],
    supervise: Supervision,
) -> Result<bool, KeyedFault> {
    let fault = |index: usize, weight: f64| {
        let fault = RowFault::MessageWeight { key: "weight", weight: weight.to_string() };
        Err((format!("{key}[{index}]"), fault))
    };
    let last = messages.len() - 1;
    let mut muted = None;
    let mut learned_before_last = false;
    for (index, weight) in weights.iter().enumerate() {
        match (messages[index].is_assistant(), weight) {
            (_, Some(0.0)) if supervise == Supervision::All => return fault(index, 0.0),
            (true, Some(0.0)) if index == last => return fault(index, 0.0),
            (true, Some(0.0)) => muted = Some(index),
            (true, _) => learned_before_last |= index != last,
            (false, Some(weight)) if *weight != 0.0 && supervise != Supervision::All => {
                return fault(index, *weight);
            }
            _ => {}
        }
    }
    match muted {
        Some(index) if learned_before_last => fault(index, 0.0),
        muted => Ok(muted.is_some()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(value: &Value) -> Result<Turns, KeyedFault> {
        let turns = read_messages("messages", value, Supervision::Assistant)?;
        check_turns("messages", &turns.messages)?;
        Ok(turns)
    }

    #[test]
    fn every_fault_of_a_conversation_is_named_with_its_key() {
        let user = json!({"role": "user", "content": "q"});
        let answer = json!({"role": "assistant", "content": "a"});
        for (value, key, code) in [
            (json!("hi"), "messages", "wrong-type"),
            (json!([]), "messages", "empty-content"),
            (json!(["hi"]), "messages[0]", "wrong-type"),
            (json!([{"content": "q"}]), "messages[0].role", "wrong-type"),
            (json!([{"role": "Customer", "content": "q"}]), "messages[0].role", "unknown-role"),
            (json!([user, {"role": "assistant"}]), "messages[1]", "empty-content"),
            (json!([user, {"role": "assistant", "content": " "}]), "messages[1]", "empty-content"),
            (json!([user, {"role": "assistant", "content": 5}]), "messages[1].content", "wrong-type"),
            (json!([user, {"role": "system", "content": "s"}, answer]), "messages[1]", "late-system"),
            (json!([user]), "messages[0]", "no-final-answer"),
            (
                json!([user, {"role": "assistant", "content": [{"type": "image_url"}]}]),
                "messages[1].content[0]",
                "not-text",
            ),
        ] {
            let (at, fault) = messages(&value).unwrap_err();
            assert_eq!((at.as_str(), fault.code()), (key, code), "{value}");
        }
    }

    #[test]
    fn a_role_from_another_vocabulary_gets_the_right_suggestion() {
        let hint = |role: &str| RowFault::UnknownRole { role: role.into(), allowed: &ROLES }.hint().unwrap();
        assert!(hint("Customer").contains("`user`"));
        assert!(hint("bot").contains("`assistant`"));
        assert!(hint("asistant").contains("`assistant`"));
    }

    #[test]
    fn text_parts_are_joined_and_a_developer_is_the_system() {
        let turns = messages(&json!([
            {"role": "developer", "content": "s"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}]},
            {"role": "assistant", "content": "c", "name": "kept"}
        ]))
        .unwrap();
        assert_eq!(turns.messages[0].role, "system");
        assert_eq!(turns.messages[1].content, Content::Text("ab".into()));
        assert_eq!(turns.messages[2].extra["name"], "kept");
    }

    #[test]
    fn arguments_become_objects_and_doubly_encoded_ones_are_refused() {
        let call = |arguments: Value| {
            messages(&json!([{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls":
                [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]}]))
        };
        let turns = call(json!("{\"a\": 1}")).unwrap();
        assert_eq!(turns.messages[1].extra["tool_calls"][0]["function"]["arguments"], json!({"a": 1}));
        assert_eq!(turns.messages[1].content, Content::Absent);
        let (at, fault) = call(json!("\"{}\"")).unwrap_err();
        assert_eq!(at, "messages[1].tool_calls[0].function.arguments");
        assert!(fault.to_string().contains("encoded twice"));
    }

    #[test]
    fn weights_are_honoured_where_a_setting_can_say_them_and_refused_elsewhere() {
        let with = |weights: [Value; 4]| {
            let roles = ["user", "assistant", "user", "assistant"];
            let list: Vec<Value> = roles
                .iter()
                .zip(weights)
                .map(|(role, weight)| json!({"role": role, "content": "x", "weight": weight}))
                .collect();
            messages(&Value::Array(list)).map(|turns| turns.last_turn_only)
        };
        let null = Value::Null;
        assert_eq!(with([json!(0.0), json!(1.0), json!(0), json!(1)]), Ok(false));
        assert_eq!(with([null.clone(), json!(0), null.clone(), null.clone()]), Ok(true));
        assert!(with([null.clone(), json!(1), null.clone(), json!(0)]).is_err());
        assert!(with([json!(1), null.clone(), null.clone(), null.clone()]).is_err());
        assert!(with([null.clone(), json!(0.5), null.clone(), null]).is_err());
    }

    #[test]
    fn sharegpt_calls_and_observations_become_tool_messages() {
        let turns = read_sharegpt(
            "conversations",
            &json!([
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {\"a\": 1}}"},
                {"from": "observation", "value": "42"},
                {"from": "gpt", "value": "a"}
            ]),
        )
        .unwrap();
        let roles: Vec<&str> = turns.messages.iter().map(|message| message.role.as_str()).collect();
        assert_eq!(roles, ["user", "assistant", "tool", "assistant"]);
        assert_eq!(turns.messages[1].extra["tool_calls"][0]["function"]["name"], "f");
        assert_eq!(check_turns("conversations", &turns.messages), Ok(()));
        let (at, _) = read_sharegpt("c", &json!([{"from": "Customer", "value": "q"}])).unwrap_err();
        assert_eq!(at, "c[0].from");
    }

    #[test]
    fn tools_are_read_from_a_list_or_a_string_and_wrapped() {
        let wrapped = json!([{"type": "function", "function": {"name": "f"}}]);
        assert_eq!(Value::Array(read_tools("tools", &json!("[{\"name\": \"f\"}]")).unwrap()), wrapped);
        assert_eq!(Value::Array(read_tools("tools", &wrapped).unwrap()), wrapped);
        assert!(read_tools("tools", &json!("")).unwrap().is_empty());
        assert!(read_tools("tools", &json!("nonsense")).is_err());
    }
}
