//! Accepts connections: bounded in number, with a deadline for the TLS handshake and for each request's headers.
//!
//! Written out because a slow stranger must cost one of a bounded number of connections for a bounded time and no more,
//! and because every connection is joined at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::config::TlsIdentity;
use crate::hub::stopped;
use crate::{HubError, engine};

/// Most connections at a time; the kernel queues a few more and then refuses.
const MAX_CONNECTIONS: usize = 1024;

/// Deadline of a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Deadline of a request's headers, and of an idle connection.
const HEADERS: Duration = Duration::from_secs(30);

/// How long a request in flight may still take when the hub stops.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// Returns what makes TLS of a connection.
pub(crate) fn acceptor(identity: &TlsIdentity) -> Result<TlsAcceptor, HubError> {
    type Source = Box<dyn std::error::Error + Send + Sync>;
    let wrong = |what: String, source: Source| HubError::Tls { what, source };
    let (certificates, key) = match identity {
        TlsIdentity::Files { certificate, key } => (
            CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(|source| wrong(format!("certificate `{}`", certificate.display()), source.into()))?,
            PrivateKeyDer::from_pem_file(key)
                .map_err(|source| wrong(format!("key `{}`", key.display()), source.into()))?,
        ),
        TlsIdentity::Pem { certificate, key } => (
            CertificateDer::pem_slice_iter(certificate.as_bytes())
                .collect::<Result<Vec<_>, _>>()
                .map_err(|source| wrong("certificate".to_owned(), source.into()))?,
            PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|source| wrong("key".to_owned(), source.into()))?,
        ),
    };
    // The provider is named rather than installed: installing one is global, and an embedding program may have its own.
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| wrong("versions".to_owned(), source.into()))?
        .with_no_client_auth()
        .with_single_cert(certificates, key)
        .map_err(|source| wrong("certificate and key together".to_owned(), source.into()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Serves until it is told to stop, and then until the last requests are answered.
pub(crate) async fn serve(
    socket: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&socket, &slots) => accepted,
            Some(_) = connections.join_next() => continue,
            () = stopped(&mut stop) => break,
        };
        match accepted {
            Ok((stream, peer, slot)) => {
                connections.spawn(connection(stream, peer, slot, tls.clone(), router.clone(), stop.clone()));
            }
            // Out of descriptors, mostly: wait for connections to end instead of spinning.
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(socket);
    while connections.join_next().await.is_some() {}
}

async fn accept(
    socket: &TcpListener,
    slots: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(std::io::Error::other)?;
    let (stream, peer) = socket.accept().await?;
    Ok((stream, peer, slot))
}

async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    _slot: OwnedSemaphorePermit,
    tls: Option<TlsAcceptor>,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let Some(tls) = tls else { return requests(stream, peer, router, stop).await };
    let handshake = tokio::select! {
        handshake = tokio::time::timeout(HANDSHAKE, tls.accept(stream)) => handshake,
        () = stopped(&mut stop) => return,
    };
    match handshake {
        Ok(Ok(stream)) => requests(stream, peer, router, stop).await,
        Ok(Err(error)) => tracing::debug!(%peer, %error, "TLS handshake"),
        Err(_) => tracing::debug!(%peer, "TLS handshake took too long"),
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Ok(ended),
        () = stopped(&mut stop) => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(LAST_REQUESTS, connection).await
        }
    };
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, error = %engine::chain(&error), "connection"),
        Err(_) => tracing::debug!(%peer, "the connection was cut off by the stop"),
    }
}
