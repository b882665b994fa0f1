//! Who may ask: the Host and Origin of a request (against DNS rebinding and foreign pages), and what CORS tells a browser.

use crate::error::ApiError;
use axum::http::{HeaderMap, HeaderValue, Request, header};
use std::net::IpAddr;

/// Headers that a page may read of an answer.
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, retry-after");
/// Bytes of the list of headers that a browser asks for.
const MOST_REQUEST_HEADERS: usize = 1024;

/// Names and pages that are let in.
#[derive(Debug, Clone, Default)]
pub(crate) struct Guard {
    /// Names besides those of this machine, lower case.
    pub(crate) hosts: Vec<String>,
    /// Whether any name is good: the server is bound to more than the loopback and asks for a key.
    pub(crate) any_host: bool,
    /// Pages that may ask, as `scheme://host:port`, or `*`.
    pub(crate) origins: Vec<String>,
}

impl Guard {
    /// Refuse a name that this server does not go by, and a page that it does not serve.
    pub(crate) fn check<B>(&self, request: &Request<B>) -> Result<(), ApiError> {
        let host = host_of(request)?;
        if !self.knows(&host) {
            return Err(ApiError::forbidden(
                "host_not_allowed",
                "the request's Host is not one of this server's; `--allowed-host` adds names",
            ));
        }
        match one(request.headers(), &header::ORIGIN)? {
            Some(origin) if !self.allows(origin) && !is_same_origin(origin, request.headers()) => {
                Err(ApiError::forbidden(
                    "origin_not_allowed",
                    "pages of that Origin may not use this server; `--cors-origin` allows one",
                ))
            }
            _ => Ok(()),
        }
    }

    fn knows(&self, host: &str) -> bool {
        let name = host_name(host);
        let loopback = name == "localhost" || name.parse::<IpAddr>().is_ok();
        loopback || self.any_host || self.hosts.iter().any(|known| known == &name || known == host)
    }

    fn allows(&self, origin: &str) -> bool {
        self.origins.iter().any(|known| known == "*" || known.eq_ignore_ascii_case(origin))
    }

    /// The page of a request, when it is one of those that were listed.
    pub(crate) fn listed_origin(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        self.allows(origin.to_str().ok()?).then(|| origin.clone())
    }
}

/// What a browser needs to let a listed page read the answer.
pub(crate) fn tell_browser(headers: &mut HeaderMap, origin: HeaderValue, asked: Option<&HeaderValue>) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("origin"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
    if let Some(asked) = asked.filter(|asked| asked.len() <= MOST_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    }
}

/// The header's text when there is one of it.
fn one<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> Result<Option<&'a str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let (first, second) = (values.next(), values.next());
    if second.is_some() {
        return Err(ApiError::malformed(format!("the request has more than one `{name}`")));
    }
    first
        .map(|value| value.to_str().map_err(|_| ApiError::malformed(format!("`{name}` is no text"))))
        .transpose()
}

/// The request's Host, lower case; that of its address where it has one there, and then both must be the same.
fn host_of<B>(request: &Request<B>) -> Result<String, ApiError> {
    let header = one(request.headers(), &header::HOST)?.map(str::to_ascii_lowercase);
    let address = request.uri().authority().map(|authority| authority.as_str().to_ascii_lowercase());
    match (header, address) {
        (Some(header), Some(address)) if header != address => {
            Err(ApiError::malformed("the request's Host is not that of its address"))
        }
        (Some(host), _) | (None, Some(host)) if !host.is_empty() => Ok(host),
        _ => Err(ApiError::malformed("the request has no Host")),
    }
}

/// `name` of `name:port`, `[v6]:port`, `[v6]`.
fn host_name(host: &str) -> String {
    if let Some((v6, _)) = host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return v6.to_owned();
    }
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name.strip_suffix('.').unwrap_or(name).to_owned()
}

/// Whether a page comes from this server itself.
fn is_same_origin(origin: &str, headers: &HeaderMap) -> bool {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let Some((scheme, of_page)) = origin.split_once("://") else { return false };
    let default = match scheme {
        "http" => ":80",
        "https" => ":443",
        _ => return false,
    };
    let bare = |name: &str| name.strip_suffix(default).unwrap_or(name).to_ascii_lowercase();
    !host.is_empty() && bare(host) == bare(of_page)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::StatusCode;

    fn request(headers: &[(&str, &str)]) -> Request<()> {
        let mut builder = Request::builder().uri("/v1/models");
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(()).unwrap()
    }

    fn status(guard: &Guard, headers: &[(&str, &str)]) -> u16 {
        guard.check(&request(headers)).map_or_else(|e| e.status.as_u16(), |()| 200)
    }

    #[test]
    fn only_names_of_this_machine_are_hosts() {
        let guard = Guard { hosts: vec!["gpu.example".into()], ..Guard::default() };
        for host in [
            "localhost:8080",
            "LOCALHOST",
            "127.0.0.1:1",
            "[::1]:8080",
            "[::1]",
            "gpu.example:8080",
            "10.0.0.3",
        ] {
            assert_eq!(status(&guard, &[("host", host)]), 200, "{host}");
        }
        for host in
            ["evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example", "gpu.example.evil"]
        {
            assert_eq!(status(&guard, &[("host", host)]), 403, "{host}");
        }
        assert_eq!(status(&guard, &[]), 400);
        assert_eq!(status(&guard, &[("host", "")]), 400);
        assert_eq!(status(&guard, &[("host", "localhost"), ("host", "evil.example")]), 400);
        assert_eq!(status(&Guard { any_host: true, ..Guard::default() }, &[("host", "any.example")]), 200);
        let absolute = Request::builder().uri("http://evil.example/v1/models").header("host", "localhost");
        let error = guard.check(&absolute.body(()).unwrap()).unwrap_err();
        assert_eq!(error.status, StatusCode::BAD_REQUEST);
    }

    #[test]
    fn pages_of_others_are_refused_unless_listed() {
        let guard = Guard { origins: vec!["https://app.example".into()], ..Guard::default() };
        let from = |origin| status(&guard, &[("host", "localhost:8080"), ("origin", origin)]);
        assert_eq!(from("http://localhost:8080"), 200);
        assert_eq!(from("https://app.example"), 200);
        for origin in ["http://evil.example", "http://localhost:9999", "null", "https://app.example.evil", ""]
        {
            assert_eq!(from(origin), 403, "{origin}");
        }
        let headers = request(&[("origin", "https://app.example")]);
        assert!(guard.listed_origin(headers.headers()).is_some());
        assert!(guard.listed_origin(request(&[("origin", "http://evil.example")]).headers()).is_none());
    }
}
