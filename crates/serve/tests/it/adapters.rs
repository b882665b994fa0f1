//! Adapters: by name, scaled, summed, loaded and unloaded while the server runs.

use crate::support::{Desk, write_adapter};
use serde_json::{Value, json};
use std::path::PathBuf;

/// A server that lets clients load `one` and `two` from its root.
fn desk() -> (Desk, PathBuf, tempfile::TempDir) {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().to_owned();
    let of_server = path.clone();
    let desk = Desk::with(|setup| {
        setup.app.allow_adapter_loading = true;
        setup.app.adapter_root = Some(of_server);
    });
    for (name, seed) in [("one", 1), ("two", 2)] {
        write_adapter(&path.join(name), &desk.folder.path().join("base"), seed);
    }
    (desk, path, root)
}

fn load(desk: &Desk, name: &str, path: &str) -> crate::support::Reply {
    desk.post("/v1/load_lora_adapter", &json!({ "lora_name": name, "lora_path": path }))
}

fn text(desk: &Desk, with: &Value) -> String {
    let body = desk.chat(&crate::support::merged(&json!({ "max_tokens": 12 }), with)).ok().json();
    body["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
}

#[test]
fn adapters_are_models_and_can_be_scaled_and_summed() {
    let (desk, _root, _guard) = desk();
    let base = text(&desk, &json!({}));
    for name in ["one", "two"] {
        assert_eq!(
            load(&desk, name, name).ok().body,
            format!("Success: LoRA adapter '{name}' added successfully.")
        );
    }
    let one = text(&desk, &json!({ "model": "one" }));
    let two = text(&desk, &json!({ "model": "two" }));
    assert!(one != base && two != base && one != two);
    assert_eq!(text(&desk, &json!({})), base, "the base stays the base");
    for model in ["tiny:one", "tiny::one", "owner/tiny:one"] {
        assert_eq!(text(&desk, &json!({ "model": model })), one, "{model}");
    }
    assert_eq!(text(&desk, &json!({ "model": "one", "adapter_scale": 0 })), base);
    assert_eq!(text(&desk, &json!({ "adapters": [{ "name": "one" }] })), one);
    assert_eq!(text(&desk, &json!({ "lora": [{ "id": 1, "scale": 1.0 }] })), two);
    let half = json!({ "name": "one", "scale": 0.5 });
    assert_ne!(text(&desk, &json!({ "adapters": [half, { "name": "two", "scale": 0.5 }] })), one);
    for (with, param) in [
        (json!({ "model": "one", "adapters": [{ "name": "two" }] }), "adapters"),
        (json!({ "adapters": [{ "name": "one" }, { "name": "one" }] }), "adapters"),
        (json!({ "model": "one", "adapter_scale": 1e9 }), "adapter_scale"),
        (json!({ "adapters": [{ "name": "one", "scale": "x" }] }), "adapters"),
        (json!({ "adapters": vec![json!({ "name": "one" }); 9] }), "adapters"),
    ] {
        let reply = desk.chat(&with);
        assert_eq!((reply.status, &reply.json()["error"]["param"]), (400, &json!(param)), "{with}");
    }
    let list = desk.get("/v1/models").ok().json();
    let entry = list["data"].as_array().unwrap().iter().find(|model| model["id"] == "one").unwrap().clone();
    assert_eq!((&entry["parent"], &entry["root"]), (&json!("tiny"), &json!("one")));
    assert_eq!(desk.get("/v1/models/one").ok().json(), entry);
    assert!(!list.to_string().contains(desk.folder.path().to_str().unwrap()));
    assert!(desk.metric("taper:adapter_requests_total{adapter=\"one\"}") >= 5.0);
    assert!(desk.metric("taper:adapter_resident_bytes{adapter=\"two\"}") > 0.0);
    assert_eq!(desk.metric("taper:adapter_loads_total{adapter=\"two\"}"), 1.0);
}

#[test]
fn unloaded_it_is_gone_and_another_of_its_name_is_another() {
    let (desk, _root, _guard) = desk();
    load(&desk, "a", "one").ok();
    let one = text(&desk, &json!({ "model": "a" }));
    let taken = load(&desk, "a", "two");
    assert_eq!(taken.status, 400);
    let again = json!({ "lora_name": "a", "lora_path": "two", "load_inplace": true });
    desk.post("/v1/load_lora_adapter", &again).ok();
    assert_ne!(text(&desk, &json!({ "model": "a" })), one, "nothing is kept of the old one");
    let unload = |name: &str| desk.post("/v1/unload_lora_adapter", &json!({ "lora_name": name })).status;
    assert_eq!(unload("a"), 200);
    assert_eq!(unload("a"), 404);
    assert_eq!(desk.chat(&json!({ "model": "a" })).status, 404);
    assert!(!desk.get("/metrics").ok().body.contains("adapter=\"a\""));
}

#[test]
fn nothing_is_loaded_unless_the_server_allows_it() {
    let desk = Desk::new();
    let reply = load(&desk, "one", "one");
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (403, &json!("adapter_loading_disabled")));
    let reply = desk.post("/v1/unload_lora_adapter", &json!({ "lora_name": "one" }));
    assert_eq!(reply.status, 403);
}

#[test]
fn clients_name_folders_in_the_root_and_reach_nothing_else() {
    let (desk, root, _guard) = desk();
    let outside = desk.folder.path().join("outside");
    write_adapter(&outside, &desk.folder.path().join("base"), 3);
    let mut paths = vec![
        "../outside".to_owned(),
        "/etc".into(),
        outside.to_string_lossy().into_owned(),
        "..".into(),
        ".".into(),
        String::new(),
        "one/../two".into(),
        "one\0".into(),
        "absent".into(),
    ];
    #[cfg(unix)]
    {
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        paths.push("link".into());
    }
    fs_err::create_dir_all(root.join("empty")).unwrap();
    paths.push("empty".into());
    for path in paths {
        let reply = load(&desk, "x", &path);
        assert_eq!(reply.status, 400, "{path}: {}", reply.body);
        for secret in [root.to_str().unwrap(), desk.folder.path().to_str().unwrap()] {
            assert!(!reply.body.contains(secret), "{path}: {}", reply.body);
        }
    }
    for name in ["tiny", "owner/tiny", "../x", "", "a b"] {
        assert_eq!(load(&desk, name, "one").status, 400, "{name}");
    }
    for body in [json!({}), json!({ "lora_name": "x" }), json!({ "lora_name": 3, "lora_path": "one" })] {
        assert_eq!(desk.post("/v1/load_lora_adapter", &body).status, 400, "{body}");
    }
}

#[test]
fn an_adapter_with_a_template_of_its_own_is_asked_in_it() {
    let (desk, root, _guard) = desk();
    fs_err::write(root.join("one/chat_template.jinja"), "{% for m in messages %}{{ m.content }}{% endfor %}")
        .unwrap();
    load(&desk, "one", "one").ok();
    let tokens = |model: &str| {
        desk.chat(&json!({ "model": model })).ok().json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    assert!(tokens("one") < tokens("tiny"));
}
