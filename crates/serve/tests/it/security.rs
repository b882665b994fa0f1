//! Who may ask, and over what.

use crate::support::{Desk, Reply, agent, read_all, sent};
use serde_json::json;
use std::io::Write;
use std::time::Duration;
use taper_serve::{ApiKeys, Error, Server, ServerOptions, TlsFiles};

fn keyed() -> Desk {
    Desk::with(|setup| setup.app.keys = ApiKeys::read(None, Some("first-key-1,second-key-2")).unwrap())
}

fn get(desk: &Desk, path: &str, headers: &[(&str, &str)]) -> Reply {
    let mut request = agent().get(desk.url(path));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    sent(request.call())
}

#[test]
fn every_address_but_health_and_the_page_needs_a_key() {
    let desk = keyed();
    for path in ["/health", "/v1/health", "/ping", "/ready", "/"] {
        assert_eq!(get(&desk, path, &[]).status, 200, "{path}");
    }
    for path in
        ["/v1/models", "/metrics", "/version", "/api/tags", "/api/version", "/lora-adapters", "/nothing"]
    {
        let reply = get(&desk, path, &[]);
        assert_eq!(reply.status, 401, "{path}");
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
        let with = |key: &str| get(&desk, path, &[("authorization", key)]).status;
        assert_eq!(with("Bearer wrong-key-3"), 401);
        assert_ne!(with("Bearer second-key-2"), 401, "{path}");
    }
    for path in [
        "/v1/chat/completions",
        "/v1/completions",
        "/tokenize",
        "/detokenize",
        "/api/generate",
        "/api/chat",
        "/api/show",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
    ] {
        assert_eq!(desk.post(path, &json!({})).status, 401, "{path}");
    }
    let error = get(&desk, "/v1/models", &[]).json();
    assert_eq!(error["error"]["code"], "invalid_api_key");
    assert!(get(&desk, "/api/tags", &[]).json()["error"].is_string());
}

#[test]
fn an_address_that_others_reach_needs_a_key_or_a_word() {
    let options = ServerOptions {
        address: "0.0.0.0:0".parse().unwrap(),
        tls: None,
        has_keys: false,
        insecure_no_auth: false,
        drain_timeout: Duration::ZERO,
    };
    let refused = Server::bind(&options).err().unwrap();
    assert!(matches!(refused, Error::Open { .. }), "{refused}");
    assert!(Server::bind(&ServerOptions { has_keys: true, ..options.clone() }).is_ok());
    assert!(Server::bind(&ServerOptions { insecure_no_auth: true, ..options.clone() }).is_ok());
    let taken =
        Server::bind(&ServerOptions { address: "127.0.0.1:0".parse().unwrap(), ..options.clone() }).unwrap();
    let again = Server::bind(&ServerOptions { address: taken.local_addr(), ..options });
    assert!(matches!(again.err(), Some(Error::Bind { .. })));
}

#[test]
fn foreign_names_and_pages_are_turned_away() {
    let desk = Desk::with(|setup| setup.app.cors_origins = vec!["https://app.example".into()]);
    let status = |headers: &[(&str, &str)]| get(&desk, "/v1/models", headers).status;
    assert_eq!(status(&[]), 200);
    assert_eq!(status(&[("host", "evil.example")]), 403);
    assert_eq!(status(&[("origin", "http://evil.example")]), 403);
    assert_eq!(status(&[("origin", "null")]), 403);
    assert_eq!(status(&[("origin", &desk.url(""))]), 200);
    assert_eq!(get(&desk, "/health", &[("host", "probe.example")]).status, 200);
    let reply = get(&desk, "/v1/models", &[("origin", "https://app.example")]).ok();
    assert_eq!(reply.header("access-control-allow-origin"), Some("https://app.example"));
    assert_eq!(reply.header("vary"), Some("origin"));
    assert_eq!(get(&desk, "/v1/models", &[]).header("access-control-allow-origin"), None);
}

#[test]
fn a_browsers_question_is_answered_for_listed_pages_alone_and_needs_no_key() {
    let desk = Desk::with(|setup| {
        setup.app.cors_origins = vec!["https://app.example".into()];
        setup.app.keys = ApiKeys::read(None, Some("first-key-1")).unwrap();
    });
    let ask = |origin: &str| {
        desk.raw(
            format!(
                "OPTIONS /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\norigin: {origin}\r\n\
                 access-control-request-method: POST\r\naccess-control-request-headers: authorization,content-type\r\n\
                 connection: close\r\n\r\n"
            )
            .as_bytes(),
        )
    };
    let answer = ask("https://app.example");
    assert!(answer.starts_with("HTTP/1.1 204"), "{answer}");
    assert!(answer.contains("access-control-allow-headers: authorization,content-type"), "{answer}");
    let answer = ask("https://evil.example");
    assert!(answer.starts_with("HTTP/1.1 403") && !answer.contains("access-control"), "{answer}");
}

#[test]
fn the_page_loads_nothing_from_elsewhere_and_can_be_left_out() {
    let page = Desk::new().get("/").ok();
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    assert_eq!(page.header("x-content-type-options"), Some("nosniff"));
    assert!(!page.body.contains("src=\"http") && !page.body.contains("href=\"http"));
    assert_eq!(Desk::with(|setup| setup.app.page = false).get("/").status, 404);
}

#[test]
fn request_ids_are_the_clients_where_they_are_sound() {
    let desk = Desk::new();
    assert_eq!(get(&desk, "/health", &[("x-request-id", "abc-1")]).header("x-request-id"), Some("abc-1"));
    let other = get(&desk, "/health", &[("x-request-id", "a b")]);
    assert_eq!(other.header("x-request-id").unwrap().len(), 24);
}

#[test]
fn over_tls_the_same_and_plain_clients_get_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (cert, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    fs_err::write(&cert, made.cert.pem()).unwrap();
    fs_err::write(&key, made.signing_key.serialize_pem()).unwrap();
    let files = TlsFiles { cert: cert.clone(), key: key.clone() };
    let desk = Desk::with(|setup| setup.server.tls = Some(files));
    let root = ureq::tls::Certificate::from_pem(made.cert.pem().as_bytes()).unwrap();
    let tls =
        ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::new_with_certs(&[root])).build();
    let agent: ureq::Agent = ureq::Agent::config_builder().tls_config(tls).proxy(None).build().into();
    let url = format!("https://localhost:{}/v1/models", desk.address.port());
    assert_eq!(sent(agent.get(&url).call()).json()["data"][0]["id"], "tiny");
    let mut stream = desk.connect();
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n").unwrap();
    assert!(!read_all(&mut stream).contains("HTTP/1.1 200"));
    // A key that is not the certificate's, and files that are none.
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let wrong = folder.path().join("wrong.pem");
    let bind = |cert: &std::path::Path, key: &std::path::Path| {
        let tls = Some(TlsFiles { cert: cert.to_owned(), key: key.to_owned() });
        let address = "127.0.0.1:0".parse().unwrap();
        let options = ServerOptions {
            address,
            tls,
            has_keys: false,
            insecure_no_auth: false,
            drain_timeout: Duration::ZERO,
        };
        Server::bind(&options).err().unwrap()
    };
    fs_err::write(&wrong, other.signing_key.serialize_pem()).unwrap();
    assert!(matches!(bind(&cert, &wrong), Error::Tls { .. }));
    fs_err::write(&wrong, "nothing").unwrap();
    assert!(matches!(bind(&wrong, &key), Error::Tls { .. }));
    assert!(matches!(bind(&cert, &wrong), Error::Tls { .. }));
}
