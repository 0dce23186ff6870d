//! Answers to `/metrics`, `/-/healthy` and `/-/ready`.

use super::Update;
use super::accept::{format, takes_gzip};
use super::connections::{Asked, Connections};
use crate::terminal::say;
use anyhow::{Context, Result};
use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, ALLOW, CONTENT_ENCODING, CONTENT_TYPE, HeaderMap, HeaderName, VARY,
};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use overcommit_recording::exposition::{Exposition, Format, Page};
use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::io::Write;
use std::net::TcpListener;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::spawn_local;
use tokio::time::{sleep, timeout};

/// Time that a client has for a request's head; hyper counts from the answer to the one before, and
/// [`Asked::too_long_ago`] comes first.
const HEAD: Duration = Duration::from_secs(180);
/// The longest head.
const HEAD_MAX: usize = 16 << 10;
/// Bytes of earlier intervals' answers that slow readers may hold, all together.
const HELD_MAX: usize = 64 << 20;
/// Time that answers have that are under way at the end.
const GRACE: Duration = Duration::from_secs(2);
/// Time after which it is tried again to take clients, should there be no descriptor for one.
const AGAIN: Duration = Duration::from_millis(100);

/// What is told, and how it is encoded.
struct Told {
    exposition: Exposition,
    page: Option<Arc<Page>>,
    /// By format and whether it is compressed: of the last interval.
    bodies: HashMap<(Format, bool), Bytes>,
    /// Of earlier ones, as long as somebody reads them.
    held: Vec<Bytes>,
}

impl Told {
    fn add(&mut self, (run, interval): Update) {
        self.exposition.add(&run, interval);
        self.page = None;
        self.held.extend(self.bodies.drain().map(|(_, body)| body));
        self.held.retain(|body| !body.is_unique());
    }

    /// Whether those who read slowly hold more than they may.
    fn is_too_much_held(&self) -> bool {
        self.held.iter().map(Bytes::len).sum::<usize>() > HELD_MAX
    }

    /// Encoded once for all that ask in the same interval.
    fn body(&mut self, format: Format, gzip: bool) -> Result<Bytes> {
        if let Some(body) = self.bodies.get(&(format, gzip)) {
            return Ok(body.clone());
        }
        let body = if gzip {
            let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
            encoder.write_all(&self.body(format, false)?)?;
            encoder.finish()?
        } else {
            let page = self.page.get_or_insert_with(|| Arc::new(self.exposition.page()));
            page.encode(format)?
        };
        let body = Bytes::from(body);
        self.bodies.insert((format, gzip), body.clone());
        Ok(body)
    }
}

/// Serves as long as intervals may come.
pub(super) async fn serve(
    listener: TcpListener,
    exposition: Exposition,
    mut updates: UnboundedReceiver<Update>,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot listen")?;
    let told = Told { exposition, page: None, bodies: HashMap::new(), held: Vec::new() };
    let told = Rc::new(RefCell::new(told));
    let mut connections = Connections::default();
    let (is_over, over) = watch::channel(false);
    loop {
        tokio::select! {
            biased;
            update = updates.recv() => match update {
                Some(update) => {
                    let mut told = told.borrow_mut();
                    told.add(update);
                    if told.is_too_much_held() {
                        connections.abort();
                    }
                }
                None => break,
            },
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let asked = Asked::not_yet();
                    let told = Rc::clone(&told);
                    let answered = answer(stream, asked.clone(), told, over.clone());
                    connections.add(asked, &spawn_local(answered));
                }
                // No descriptor is left, or the client has gone already.
                Err(_) => sleep(AGAIN).await,
            },
        }
    }
    drop(listener);
    is_over.send_replace(true);
    let closed = async {
        while connections.are_open() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    // Slow readers are cut off.
    let _ = timeout(GRACE, closed).await;
    Ok(())
}

/// One client, until it goes, asks nothing for too long, or all is over.
async fn answer(
    stream: TcpStream,
    asked: Asked,
    told: Rc<RefCell<Told>>,
    mut over: watch::Receiver<bool>,
) {
    let service = service_fn(|request: Request<Incoming>| {
        asked.again();
        let response = respond(&mut told.borrow_mut(), &request);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(HEAD_MAX);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // What a client does wrong is its own business.
        _ = &mut connection => return,
        () = asked.too_long_ago() => return,
        _ = over.wait_for(|over| *over) => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

fn respond(told: &mut Told, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
        set(&mut response, ALLOW, "GET, HEAD");
        return response;
    }
    let is_ready = told.exposition.is_ready();
    match request.uri().path() {
        "/metrics" if is_ready => metrics(told, request.headers()),
        "/-/ready" if is_ready => text(StatusCode::OK, "ready\n"),
        "/metrics" | "/-/ready" => {
            text(StatusCode::SERVICE_UNAVAILABLE, "not ready: no interval is over yet\n")
        }
        "/-/healthy" => text(StatusCode::OK, "healthy\n"),
        _ => text(StatusCode::NOT_FOUND, "there is /metrics, /-/healthy and /-/ready\n"),
    }
}

fn metrics(told: &mut Told, headers: &HeaderMap) -> Response<Full<Bytes>> {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let (format, gzip) = (format(header(ACCEPT)), takes_gzip(header(ACCEPT_ENCODING)));
    let body = match told.body(format, gzip) {
        Ok(body) => body,
        Err(error) => {
            say(&format!("overcommit: error: {error:#}"));
            return text(StatusCode::INTERNAL_SERVER_ERROR, "cannot encode the metrics\n");
        }
    };
    let mut response = Response::new(Full::new(body));
    set(&mut response, CONTENT_TYPE, format.content_type());
    set(&mut response, VARY, "Accept, Accept-Encoding");
    if gzip {
        set(&mut response, CONTENT_ENCODING, "gzip");
    }
    response
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    set(&mut response, CONTENT_TYPE, "text/plain; charset=utf-8");
    response
}

fn set(response: &mut Response<Full<Bytes>>, name: HeaderName, value: &'static str) {
    response.headers_mut().insert(name, hyper::header::HeaderValue::from_static(value));
}

#[cfg(test)]
mod tests {
    use super::*;
    use overcommit_recording::exposition::{BUCKETS, Options, SCHEMA};
    use overcommit_recording::model::interval::Interval;
    use overcommit_recording::model::run::Run;

    #[test]
    fn what_slow_readers_hold_is_counted_as_long_as_they_hold_it() {
        let options =
            Options { schema: SCHEMA, buckets: BUCKETS, aggregate: true, objectives: Vec::new() };
        let exposition = Exposition::new(options);
        let mut told = Told { exposition, page: None, bodies: HashMap::new(), held: Vec::new() };
        let next = |told: &mut Told| told.add((Arc::new(Run::default()), Interval::default()));
        let mut readers = Vec::new();
        for is_too_much in [false, true] {
            let body = Bytes::from(vec![0; 2 * HELD_MAX / 3]);
            // One that nobody reads is gone with its interval.
            told.bodies.insert((Format::OpenMetrics, false), Bytes::from(vec![0; HELD_MAX]));
            readers.push(body.clone());
            told.bodies.insert((Format::Text, false), body);
            next(&mut told);
            assert_eq!(told.is_too_much_held(), is_too_much);
        }
        readers.clear();
        next(&mut told);
        assert!(told.held.is_empty() && !told.is_too_much_held());
    }
}
