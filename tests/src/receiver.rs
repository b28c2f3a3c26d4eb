//! A receiver of webhooks over https that believes only what carries a valid Standard Webhooks signature.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use aws_lc_rs::hmac;
use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use crate::certificates::{Authority, Certificate};
use crate::run::{free_port, wait_for};

/// How far a message's time may lie from ours, as the standard advises.
const TOLERANCE: Duration = Duration::from_secs(300);

/// The largest body that is read.
const MAX_BODY: usize = 16 * 1024 * 1024;

/// A message that was accepted with a 2xx.
#[derive(Debug, Clone)]
pub struct Message {
    /// `webhook-id`.
    pub id: String,
    /// Whether the signature is ours and the time is near.
    pub verified: std::result::Result<(), String>,
    /// The body.
    pub body: Value,
    /// When it was received.
    pub received: Instant,
}

/// A running receiver.
#[derive(Debug)]
pub struct Receiver {
    port: u16,
    secret: String,
    shared: Arc<Shared>,
    tls: Arc<rustls::ServerConfig>,
    running: Option<Running>,
}

#[derive(Debug)]
struct Shared {
    key: Vec<u8>,
    status: AtomicU16,
    refused: Mutex<Vec<Message>>,
    accepted: Mutex<Vec<Message>>,
}

#[derive(Debug)]
struct Running {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Receiver {
    /// Starts one on a free port, with a secret of its own.
    pub fn start(authority: &Authority) -> Result<Self> {
        let mut key = vec![0; 32];
        aws_lc_rs::rand::fill(&mut key).map_err(|_| anyhow!("no randomness"))?;
        let mut receiver = Self {
            port: free_port()?,
            secret: format!("whsec_{}", BASE64_STANDARD.encode(&key)),
            shared: Arc::new(Shared {
                key,
                status: AtomicU16::new(204),
                refused: Mutex::default(),
                accepted: Mutex::default(),
            }),
            tls: Arc::new(tls_config(&authority.issue("receiver")?)?),
            running: None,
        };
        receiver.resume()?;
        Ok(receiver)
    }

    /// Where to deliver.
    pub fn url(&self) -> String {
        format!("https://localhost:{}/hook", self.port)
    }

    /// The secret to sign with, as the standard writes it.
    pub fn secret(&self) -> &str {
        &self.secret
    }

    /// Sets the status of every answer from now on.
    pub fn answer(&self, status: u16) {
        self.shared.status.store(status, Ordering::SeqCst);
    }

    /// Everything accepted so far, in order of arrival.
    pub fn messages(&self) -> Vec<Message> {
        guard(&self.shared.accepted).clone()
    }

    /// Everything that was answered with something else than 2xx, in order of arrival.
    pub fn refused(&self) -> Vec<Message> {
        guard(&self.shared.refused).clone()
    }

    /// Waits for an accepted message like this one.
    pub fn wait_for(&self, what: &str, within: Duration, like: impl Fn(&Message) -> bool) -> Result<Message> {
        wait_for(what, within, || Ok(self.messages().into_iter().find(&like))).with_context(|| {
            let seen: Vec<String> = self.messages().iter().map(|message| message.body.to_string()).collect();
            format!("the receiver has {} messages:\n{}", seen.len(), seen.join("\n"))
        })
    }

    /// Stops listening: connections are refused.
    pub fn stop(&mut self) {
        let Some(Running { stop, thread }) = self.running.take() else { return };
        stop.store(true, Ordering::SeqCst);
        // Wakes the accepting thread, which then sees the flag.
        drop(TcpStream::connect(("127.0.0.1", self.port)));
        if thread.join().is_err() {
            eprintln!("the receiver's thread has panicked");
        }
    }

    /// Listens again on the same port.
    pub fn resume(&mut self) -> Result<()> {
        ensure!(self.running.is_none(), "the receiver runs already");
        let listener = TcpListener::bind(("127.0.0.1", self.port)).context("cannot listen for webhooks")?;
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, tls, stopped) = (self.shared.clone(), self.tls.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                for stream in listener.incoming() {
                    if stopped.load(Ordering::SeqCst) {
                        break;
                    }
                    let (shared, tls) = (&shared, tls.clone());
                    scope.spawn(move || {
                        // A sender that breaks off has delivered nothing, and will say so itself.
                        if let Err(error) =
                            stream.context("cannot accept").and_then(|stream| serve(stream, tls, shared))
                        {
                            eprintln!("receiver: {error:#}");
                        }
                    });
                }
            });
        });
        self.running = Some(Running { stop, thread });
        Ok(())
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Answers one request and closes: a sender that keeps connections open would outlive [`Receiver::stop`].
fn serve(stream: TcpStream, tls: Arc<rustls::ServerConfig>, shared: &Shared) -> Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).context("cannot set a timeout")?;
    let connection = rustls::ServerConnection::new(tls).context("cannot begin TLS")?;
    let mut stream = BufReader::new(rustls::StreamOwned::new(connection, stream));
    let (mut headers, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        ensure!(stream.read_line(&mut line).context("cannot read a header")? > 0, "the sender broke off");
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        if let Some((name, value)) = line.split_once(':') {
            let (name, value) = (name.to_ascii_lowercase(), value.trim().to_owned());
            if name == "content-length" {
                length = value.parse().with_context(|| format!("`{value}` is no length"))?;
            }
            headers.push((name, value));
        }
    }
    ensure!(length <= MAX_BODY, "a body of {length} bytes is too large");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).context("cannot read the body")?;

    let header = |name: &str| headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let message = Message {
        id: header("webhook-id").unwrap_or_default().to_owned(),
        verified: verify(&shared.key, header, &body, jiff::Timestamp::now()).map_err(|error| format!("{error:#}")),
        body: serde_json::from_slice(&body).context("the body is not JSON")?,
        received: Instant::now(),
    };
    let status = shared.status.load(Ordering::SeqCst);
    let store = if (200..300).contains(&status) { &shared.accepted } else { &shared.refused };
    guard(store).push(message);
    write!(stream.get_mut(), "HTTP/1.1 {status} Test\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        .context("cannot answer")?;
    stream.get_mut().conn.send_close_notify();
    stream.get_mut().flush().context("cannot answer")
}

/// Verifies a signature as the standard says: HMAC-SHA256 over id, time and body, one match among several is enough.
fn verify<'a>(key: &[u8], header: impl Fn(&str) -> Option<&'a str>, body: &[u8], now: jiff::Timestamp) -> Result<()> {
    let part = |name: &str| header(name).with_context(|| format!("the header `{name}` is missing"));
    let (id, time, signatures) = (part("webhook-id")?, part("webhook-timestamp")?, part("webhook-signature")?);
    let seconds: i64 = time.parse().with_context(|| format!("the time `{time}` is no number"))?;
    ensure!(now.as_second().abs_diff(seconds) <= TOLERANCE.as_secs(), "the time {seconds} is too far from {now}");
    let mut signed = format!("{id}.{time}.").into_bytes();
    signed.extend_from_slice(body);
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    let matches = signatures.split(' ').filter_map(|signature| signature.strip_prefix("v1,")).any(|signature| {
        BASE64_STANDARD.decode(signature).is_ok_and(|signature| hmac::verify(&key, &signed, &signature).is_ok())
    });
    ensure!(matches, "none of the signatures `{signatures}` is valid");
    Ok(())
}

fn tls_config(certificate: &Certificate) -> Result<rustls::ServerConfig> {
    let chain = CertificateDer::pem_file_iter(&certificate.certificate)
        .context("cannot read the certificate")?
        .collect::<std::result::Result<Vec<_>, _>>()
        .context("cannot parse the certificate")?;
    let key = PrivateKeyDer::from_pem_file(&certificate.key).context("cannot read the key")?;
    rustls::ServerConfig::builder_with_provider(rustls::crypto::aws_lc_rs::default_provider().into())
        .with_safe_default_protocol_versions()
        .context("no protocol versions")?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .context("cannot use the certificate")
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
