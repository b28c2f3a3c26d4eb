//! A webhook receiver for the demo: takes alerts over HTTP/1.1 on loopback, and believes only those whose signature is right.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Largest request, in bytes.
const MAX_REQUEST: usize = 1024 * 1024;

/// What has arrived so far: the alerts' JSON, in order.
#[derive(Debug, Clone, Default)]
pub(super) struct Received(Arc<Mutex<Vec<serde_json::Value>>>);

impl Received {
    /// The alerts of one event.
    pub(super) fn of(&self, event: &str) -> Vec<serde_json::Value> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter(|alert| alert.get("type").and_then(|t| t.as_str()) == Some(event)).cloned().collect()
    }

    fn push(&self, alert: serde_json::Value) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(alert);
    }
}

/// Binds a free port on loopback.
pub(super) async fn bind() -> anyhow::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind("127.0.0.1:0").await.context("cannot bind the webhook receiver")?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}

/// Receives for ever.
pub(super) async fn serve(listener: TcpListener, secret: Vec<u8>, received: Received) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let (secret, received) = (secret.clone(), received.clone());
                connections.spawn(async move {
                    // A connection that breaks off is the sender's to repeat.
                    drop(tokio::time::timeout(Duration::from_secs(10), take(stream, &secret, &received)).await);
                });
            }
            Some(_ended) = connections.join_next() => {}
        }
    }
}

async fn take(mut stream: TcpStream, secret: &[u8], received: &Received) -> std::io::Result<()> {
    let mut buffer = Vec::new();
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if buffer.len() > MAX_REQUEST || stream.read_buf(&mut buffer).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(buffer.get(..head_end).unwrap_or_default()).into_owned();
    let header = |name: &str| {
        head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let length = header("content-length").and_then(|v| v.parse::<usize>().ok()).unwrap_or(0).min(MAX_REQUEST);
    let mut body = buffer.split_off(head_end + 4);
    while body.len() < length {
        if stream.read_buf(&mut body).await? == 0 {
            return Ok(());
        }
    }
    let signed = match (header("webhook-id"), header("webhook-timestamp"), header("webhook-signature")) {
        (Some(id), Some(time), Some(signature)) => {
            let mut content = format!("{id}.{time}.").into_bytes();
            content.extend(&body);
            let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
            signature
                .split(' ')
                .filter_map(|s| s.strip_prefix("v1,"))
                .any(|s| STANDARD.decode(s).is_ok_and(|tag| hmac::verify(&key, &content, &tag).is_ok()))
        }
        _ => false,
    };
    let status = match serde_json::from_slice(&body) {
        Ok(alert) if signed => {
            received.push(alert);
            "204 No Content"
        }
        _ => "401 Unauthorized",
    };
    stream.write_all(format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes()).await?;
    stream.shutdown().await
}
