//! Pulls over TLS from git's own server side, with a certificate authority of the test's own.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::tests::Pair;
use super::*;
use crate::courier::fetch::explain;

/// What a server wants of a request before it answers.
#[derive(Clone, Copy)]
enum Guard {
    Open,
    Token,
    Moved,
    Forbidden,
}

struct GitServer {
    url: String,
    ca: PathBuf,
}

impl GitServer {
    fn start(pair: &Pair, guard: Guard) -> Self {
        crate::courier::http::install_crypto();
        let certified = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let ca = pair.file("ca.pem", &certified.cert.pem());
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(certified.signing_key.serialize_der()));
        let config = rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certified.cert.der().clone()], key)
            .unwrap();
        let config = Arc::new(config);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("https://localhost:{}/source/.git", listener.local_addr().unwrap().port());
        let root = pair.source().parent().unwrap().to_owned();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, root) = (Arc::clone(&config), root.clone());
                std::thread::spawn(move || {
                    let connection = rustls::ServerConnection::new(config).unwrap();
                    // A client that does not trust the certificate breaks off; that is its right.
                    serve(rustls::StreamOwned::new(connection, stream), &root, guard).ok();
                });
            }
        });
        Self { url, ca }
    }
}

fn serve(stream: impl io::Read + io::Write, root: &Path, guard: Guard) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        lines
            .iter()
            .filter_map(|line| line.split_once(": "))
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, v)| v)
    };
    let mut body = vec![0; header("content-length").map_or(0, |n| n.parse().unwrap())];
    reader.read_exact(&mut body)?;
    let answer = match guard {
        Guard::Token if header("authorization") != Some("Bearer token-of-this-host") => {
            b"HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic\r\nContent-Length: 0\r\n".to_vec()
        }
        Guard::Moved => b"HTTP/1.1 302 Found\r\nLocation: https://localhost:1/\r\nContent-Length: 0\r\n".to_vec(),
        Guard::Forbidden => b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n".to_vec(),
        Guard::Open | Guard::Token => {
            let (method, rest) = lines[0].split_once(' ').unwrap();
            let (path, query) =
                rest.split_once(' ').unwrap().0.split_once('?').unwrap_or((rest.split(' ').next().unwrap(), ""));
            #[expect(clippy::disallowed_methods, reason = "the test needs git's own server side")]
            let mut backend = std::process::Command::new("git")
                .args(["-c", "safe.directory=*", "http-backend"])
                .env("GIT_PROJECT_ROOT", root)
                .env("GIT_HTTP_EXPORT_ALL", "1")
                .env("PATH_INFO", path)
                .env("QUERY_STRING", query)
                .env("REQUEST_METHOD", method)
                .env("CONTENT_TYPE", header("content-type").unwrap_or_default())
                .env("GIT_PROTOCOL", header("git-protocol").unwrap_or_default())
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            backend.stdin.take().unwrap().write_all(&body)?;
            let output = backend.wait_with_output()?.stdout;
            let end = output.windows(4).position(|w| w == b"\r\n\r\n").unwrap();
            let status = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n", output.len() - end - 4);
            [status.as_bytes(), &output].concat()
        }
    };
    let mut stream = reader.into_inner();
    // git's own answers bring their headers with them.
    match guard {
        Guard::Open | Guard::Token if answer.starts_with(b"HTTP/1.1 200") => {}
        Guard::Open | Guard::Token | Guard::Moved | Guard::Forbidden => {
            stream.write_all(&[answer.as_slice(), b"\r\n"].concat())?;
            return stream.flush();
        }
    }
    stream.write_all(&answer)?;
    stream.flush()
}

#[test]
fn a_branch_arrives_over_https_with_a_private_authority_and_a_token() {
    let pair = Pair::new();
    let first = pair.commit("policy.toml", "one");
    let server = GitServer::start(&pair, Guard::Token);
    let mut request = pair.request();
    request.url = server.url;
    request.ca = Some(server.ca);
    request.token_file = Some(pair.file("token", "token-of-this-host\n"));
    assert_eq!(pull(&request).map(|id| id.to_string()).map_err(|error| chain(&error)), Ok(first.clone()));
    assert_eq!(pair.log(), std::slice::from_ref(&first));
    let second = pair.commit("policy.toml", "two");
    assert_eq!(pull(&request).unwrap().to_string(), second);
    assert_eq!(pull(&request).unwrap().to_string(), second);
    assert_eq!(pair.log(), [second, first], "the whole history is there");
}

#[test]
fn what_fails_over_https_is_explained() {
    let check = |guard: Guard, change: fn(&Pair, &mut PullRequest), expected: &str| {
        let pair = Pair::new();
        pair.commit("policy.toml", "one");
        let server = GitServer::start(&pair, guard);
        let mut request = pair.request();
        request.url = server.url;
        request.ca = Some(server.ca);
        change(&pair, &mut request);
        let text = explain(&chain(&pull(&request).expect_err(expected)), b"");
        assert!(text.contains(expected), "expected `{expected}`: {text}");
    };
    check(Guard::Token, |_, _| {}, "wants credentials (401)");
    check(Guard::Token, |pair, r| r.token_file = Some(pair.file("token", "another")), "wants credentials (401)");
    check(Guard::Forbidden, |_, _| {}, "refuses these credentials (403)");
    check(Guard::Moved, |_, _| {}, "cannot fetch from `https://localhost");
    check(Guard::Open, |_, r| r.branch = "absent".into(), "there is no branch `absent`");
    check(Guard::Open, |_, r| r.url = r.url.replace("/source/", "/elsewhere/"), "cannot fetch from");
    let stranger = |pair: &Pair, request: &mut PullRequest| {
        let other = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        request.ca = Some(pair.file("other.pem", &other.cert.pem()));
    };
    check(Guard::Open, stranger, "from an unknown authority: set `ca`");
    check(Guard::Open, |_, r| r.url = r.url.replace("localhost", "127.0.0.1"), "for another name");
    check(Guard::Open, |pair, r| r.ca = Some(pair.file("empty.pem", "")), "it holds no PEM certificate");
    check(Guard::Open, |_, r| r.ca = Some("/nowhere.pem".into()), "cannot use `/nowhere.pem`");
}
