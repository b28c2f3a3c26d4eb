//! As much of HTTP as a collector of metrics needs, for both services: one request, one answer, and the connection ends.
//!
//! Pure: the caller reads and writes. Whatever the request says, nothing but the one text is ever given away.

/// Longest head of a request, in bytes.
pub const MAX_HEAD: u64 = 8 * 1024;

/// The type of the text that Prometheus reads.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a head of a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The metrics.
    Metrics,
    /// How long the metrics are.
    Head,
    /// A path that there is not.
    Other,
    /// To change something, or no HTTP at all.
    Nonsense,
}

/// Whether the head of a request has come whole.
pub fn is_whole(head: &[u8]) -> bool {
    head.windows(4).any(|end| end == b"\r\n\r\n") || head.windows(2).any(|end| end == b"\n\n")
}

/// Reads the first line of a request; the rest does not matter.
pub fn asked(head: &[u8]) -> Asked {
    let line = head.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = std::str::from_utf8(line).unwrap_or_default().split(' ');
    let (method, target, version) = (words.next(), words.next(), words.next());
    if !version.is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Asked::Nonsense;
    }
    let path = target.unwrap_or_default().split('?').next().unwrap_or_default();
    match (method, path) {
        (Some("GET"), "/metrics" | "/") => Asked::Metrics,
        (Some("HEAD"), "/metrics" | "/") => Asked::Head,
        (Some("GET" | "HEAD"), _) => Asked::Other,
        (Some(_) | None, _) => Asked::Nonsense,
    }
}

/// The whole answer; `Err` is why there are no metrics now.
pub fn answer(asked: Asked, metrics: Result<&str, &str>) -> Vec<u8> {
    let (status, body, is_shown) = match (asked, metrics) {
        (Asked::Metrics, Ok(text)) => ("200 OK", text, true),
        (Asked::Head, Ok(text)) => ("200 OK", text, false),
        (Asked::Metrics, Err(why)) => ("503 Service Unavailable", why, true),
        (Asked::Head, Err(why)) => ("503 Service Unavailable", why, false),
        (Asked::Other, _) => ("404 Not Found", "the metrics are at /metrics\n", true),
        (Asked::Nonsense, _) => ("400 Bad Request", "GET /metrics is understood, and nothing else\n", true),
    };
    let length = body.len();
    let shown = if is_shown { body } else { "" };
    format!("HTTP/1.1 {status}\r\nContent-Type: {TEXT}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{shown}")
        .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(head: &str, expected: Asked) {
        assert_eq!(asked(head.as_bytes()), expected, "{head:?}");
    }

    #[test]
    fn requests_are_told_apart() {
        check("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", Asked::Metrics);
        check("GET /metrics?name[]=up HTTP/1.0\r\n\r\n", Asked::Metrics);
        check("HEAD / HTTP/1.1\r\n\r\n", Asked::Head);
        check("GET /etc/shadow HTTP/1.1\r\n\r\n", Asked::Other);
        check("GET /metrics/../x HTTP/1.1\r\n\r\n", Asked::Other);
        check("POST /metrics HTTP/1.1\r\n\r\n", Asked::Nonsense);
        check("GET /metrics\r\n\r\n", Asked::Nonsense);
        check("\u{0}\u{1}", Asked::Nonsense);
        check("", Asked::Nonsense);
    }

    #[test]
    fn the_answer_says_how_long_it_is_and_a_head_shows_nothing() {
        let text = |asked, metrics| String::from_utf8(answer(asked, metrics)).unwrap();
        assert!(text(Asked::Metrics, Ok("a 1\n")).ends_with("Content-Length: 4\r\nConnection: close\r\n\r\na 1\n"));
        assert!(text(Asked::Head, Ok("a 1\n")).ends_with("Content-Length: 4\r\nConnection: close\r\n\r\n"));
        assert!(text(Asked::Metrics, Err("gone\n")).starts_with("HTTP/1.1 503 "));
        for asked in [Asked::Other, Asked::Nonsense] {
            assert!(!text(asked, Ok("secret")).contains("secret"));
        }
    }

    #[test]
    fn a_head_is_whole_at_its_empty_line() {
        assert!(is_whole(b"GET / HTTP/1.1\r\n\r\n"));
        assert!(is_whole(b"GET / HTTP/1.1\n\n"));
        assert!(!is_whole(b"GET / HTTP/1.1\r\nHost: x\r\n"));
    }
}
