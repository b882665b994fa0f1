//! The accept loop, and how it ends: no more requests, those in flight to their end, then the connections.

use crate::app::App;
use crate::limits::Limits;
use crate::routes::router;
use crate::stalled::Stalled;
use crate::{Error, TlsFiles, tls};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

/// Threads for connections: the engine needs the processors.
const WORKERS: usize = 2;
/// Threads for what blocks.
const BLOCKING: usize = 8;
/// Time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Time for connections to close once their requests have ended.
const CLOSING: Duration = Duration::from_secs(2);
/// What a connection beyond the limit is told.
const FULL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";

/// Where to listen, and how it ends.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerOptions {
    /// The address; port 0 takes a free one.
    pub address: SocketAddr,
    /// Serve over TLS.
    pub tls: Option<TlsFiles>,
    /// Whether keys are asked for.
    pub has_keys: bool,
    /// Listen on an address that others can reach even without keys.
    pub insecure_no_auth: bool,
    /// Time for requests in flight to end once the server is asked to.
    pub drain_timeout: Duration,
}

/// An address that is listened on.
pub struct Server {
    listener: std::net::TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    drain_timeout: Duration,
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drained {
    /// Every request that was taken got its whole answer.
    Whole,
    /// Requests were cut off.
    Cut {
        /// How many.
        requests: usize,
    },
}

/// Asks a server to end. The second time it does not wait for requests in flight.
#[derive(Debug, Clone)]
pub struct Shutdown(watch::Sender<u32>);

impl Default for Shutdown {
    fn default() -> Self {
        Self(watch::Sender::new(0))
    }
}

impl Shutdown {
    /// Ask.
    pub fn ask(&self) {
        self.0.send_modify(|times| *times += 1);
    }

    async fn asked(&self, times: u32) {
        // Cannot fail: the sender is ours.
        let _ = self.0.subscribe().wait_for(|asked| *asked >= times).await;
    }
}

impl Server {
    /// Take the address and read the certificate, before a model is loaded.
    ///
    /// # Errors
    /// When the address is taken or can be reached by others without a key, or the certificate cannot be used.
    pub fn bind(options: &ServerOptions) -> Result<Self, Error> {
        let address = options.address;
        if !address.ip().is_loopback() && !options.has_keys && !options.insecure_no_auth {
            return Err(Error::Open { address });
        }
        let tls = options.tls.as_ref().map(tls::acceptor).transpose()?;
        let bind = |source| Error::Bind { address, source };
        let listener = std::net::TcpListener::bind(address).map_err(bind)?;
        listener.set_nonblocking(true).map_err(bind)?;
        let address = listener.local_addr().map_err(bind)?;
        Ok(Self { listener, address, tls, drain_timeout: options.drain_timeout })
    }

    /// The address, with the port that was taken.
    pub fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.tls.is_some() { "https" } else { "http" }
    }

    /// Serve until `shutdown` asks to end, or (with `signals`) Ctrl-C or SIGTERM does.
    ///
    /// # Errors
    /// When the system has no threads or signal handlers for us.
    pub fn run(self, app: Arc<App>, shutdown: &Shutdown, signals: bool) -> Result<Drained, Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(WORKERS)
            .max_blocking_threads(BLOCKING)
            .thread_name("http")
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let drained = runtime.block_on(self.serve(app, shutdown.clone(), signals));
        runtime.shutdown_timeout(Duration::from_secs(1));
        drained
    }

    async fn serve(self, app: Arc<App>, shutdown: Shutdown, signals: bool) -> Result<Drained, Error> {
        if signals {
            listen_for_signals(shutdown.clone())?;
        }
        let listener = TcpListener::from_std(self.listener).map_err(Error::Start)?;
        let closing = watch::Sender::new(false);
        let limits = &app.options.limits;
        let connections = Connections {
            router: router(&app),
            tls: self.tls,
            places: Arc::new(Semaphore::new(limits.connections)),
            limits: limits.clone(),
            closing: closing.clone(),
        };
        let accepting = tokio::spawn(accept(listener, connections.clone()));
        shutdown.asked(1).await;
        app.begin_drain();
        tracing::info!(in_flight = app.in_flight(), "shutting down: no more requests are taken");
        let deadline = Instant::now() + self.drain_timeout;
        // Until then the probes are answered: readiness says 503.
        let whole = tokio::select! {
            whole = all_ended(&app, deadline) => whole,
            () = shutdown.asked(2) => app.in_flight() == 0,
        };
        let cut = app.in_flight();
        if !whole {
            app.cut();
        }
        accepting.abort();
        closing.send_replace(true);
        connections.all_closed(CLOSING).await;
        let service = app.service.clone();
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = tokio::task::spawn_blocking(move || service.shut_down(left)).await.unwrap_or(false);
        tracing::info!(cut = !whole, engine_ended = ended, "shut down");
        Ok(if whole { Drained::Whole } else { Drained::Cut { requests: cut } })
    }
}

/// Whether all requests have ended in time.
async fn all_ended(app: &App, deadline: Instant) -> bool {
    while app.in_flight() > 0 {
        if Instant::now() >= deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

fn listen_for_signals(shutdown: Shutdown) -> Result<(), Error> {
    #[cfg(unix)]
    let mut terminate = {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::terminate()).map_err(Error::Start)?
    };
    tokio::spawn(async move {
        loop {
            #[cfg(unix)]
            tokio::select! {
                _ = tokio::signal::ctrl_c() => {}
                _ = terminate.recv() => {}
            }
            #[cfg(not(unix))]
            let _ = tokio::signal::ctrl_c().await;
            shutdown.ask();
        }
    });
    Ok(())
}

/// What every connection is served with.
#[derive(Clone)]
struct Connections {
    router: Router,
    tls: Option<TlsAcceptor>,
    places: Arc<Semaphore>,
    limits: Limits,
    closing: watch::Sender<bool>,
}

async fn accept(listener: TcpListener, connections: Connections) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => connections.admit(stream),
            Err(error) => {
                // Out of file descriptors, most likely: others will be closed.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Connections {
    fn admit(&self, mut stream: TcpStream) {
        let Ok(place) = self.places.clone().try_acquire_owned() else {
            tracing::warn!("a connection was turned away: as many are open as may be");
            if self.tls.is_none() {
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(Duration::from_secs(1), stream.write_all(FULL)).await;
                });
            }
            return;
        };
        let connections = self.clone();
        tokio::spawn(async move {
            connections.serve(stream).await;
            drop(place);
        });
    }

    async fn serve(&self, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let stream = Stalled::new(stream, self.limits.write_timeout);
        match &self.tls {
            None => self.speak(stream).await,
            Some(tls) => match tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.speak(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
                Err(_) => tracing::debug!("a TLS handshake took too long"),
            },
        }
    }

    async fn speak(&self, stream: impl AsyncRead + AsyncWrite + Unpin) {
        let service = TowerToHyperService::new(self.router.clone());
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.limits.head_timeout)
            .max_buf_size(self.limits.head_bytes.max(8192))
            .max_headers(self.limits.headers)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let mut closing = self.closing.subscribe();
        // What it gives is a lock, which must not be held over the rest.
        let closing = async { drop(closing.wait_for(|closing| *closing).await) };
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = closing => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection broke off");
        }
    }

    /// Whether all have closed in time.
    async fn all_closed(&self, within: Duration) -> bool {
        let all = u32::try_from(self.limits.connections).unwrap_or(u32::MAX);
        tokio::time::timeout(within, self.places.acquire_many(all)).await.is_ok()
    }
}
