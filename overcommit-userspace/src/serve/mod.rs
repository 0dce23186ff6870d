//! `overcommit serve`: metrics over HTTP, on a thread of its own, so that no client holds up whoever
//! counts.
//!
//! `http` answers, `accept` reads which format a client wants, `connections` bounds what clients cost.

mod accept;
mod connections;
mod http;

use crate::kernel::capability::keep_nothing;
use crate::session::wait::Over;
use anyhow::{Context, Result, anyhow};
use overcommit_recording::exposition::Exposition;
use overcommit_recording::model::interval::Interval;
use overcommit_recording::model::run::Run;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

/// An interval that is over, and the run as it is by then.
type Update = (Arc<Run>, Interval);

/// Serves until it is ended.
pub struct Server {
    thread: JoinHandle<Result<()>>,
    /// Nothing is lost on this way: the thread takes it whatever its clients do.
    updates: UnboundedSender<Update>,
}

impl Server {
    /// Answers from now on. Whoever waits for `failed` is told if it cannot go on.
    ///
    /// # Errors
    /// There can be no more threads.
    pub fn start(
        listener: TcpListener,
        exposition: Exposition,
        failed: Arc<Notify>,
    ) -> Result<Self> {
        let (updates, received) = unbounded_channel();
        let thread = std::thread::Builder::new().name("serve".to_owned());
        let thread = thread.spawn(move || {
            let _over = Over(failed);
            keep_nothing()?;
            serve(listener, exposition, received)
        });
        Ok(Self { thread: thread.context("cannot start a thread")?, updates })
    }

    /// Hands an interval on.
    pub fn tell(&self, run: &Arc<Run>, interval: &Interval) {
        // The session ends soon after the thread, by its `Over`.
        let _ = self.updates.send((Arc::clone(run), interval.copied(|_| true, |_| true)));
    }

    /// Ends it, when what is being answered is answered.
    ///
    /// # Errors
    /// It could not go on before.
    pub fn end(self) -> Result<()> {
        drop(self.updates);
        self.thread.join().map_err(|_| anyhow!("the server failed; see above"))?
    }
}

/// Listens there.
///
/// # Errors
/// Somebody else does, or the address is not this host's.
pub fn listen(address: SocketAddr) -> Result<(TcpListener, SocketAddr)> {
    let what = || format!("cannot listen on {address}; choose another address with --listen");
    let listener = TcpListener::bind(address).with_context(what)?;
    listener.set_nonblocking(true).with_context(what)?;
    let address = listener.local_addr().with_context(what)?;
    Ok((listener, address))
}

fn serve(
    listener: TcpListener,
    exposition: Exposition,
    updates: UnboundedReceiver<Update>,
) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot make a runtime")?;
    LocalSet::new().block_on(&runtime, http::serve(listener, exposition, updates))
}
