//! The terminal that shows the screen, and is left as it was found: at the end, in a panic, on a
//! signal, and while the program is stopped.

use crate::kernel::clock;
use crate::top::Update;
use crate::top::app::{App, Ask};
use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use overcommit_recording::recording::Folder;
use overcommit_recording::recording::span::{self, Mark};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::widgets::Paragraph;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::low_level::emulate_default_handler;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

/// Milliseconds between two looks for what has come.
const TICK: u16 = 100;

/// Where intervals come from.
pub trait Source {
    /// What comes next, if anything is due: so many times as fast as it was recorded, where it was.
    ///
    /// # Errors
    /// It cannot be read.
    fn next(&mut self, pace: f64) -> Result<Next>;

    /// Keeps a mark, if it is recorded.
    ///
    /// # Errors
    /// It cannot be written.
    fn mark(&mut self, mark: &Mark) -> Result<()>;

    /// Goes to that moment, in Unix seconds, if it can: all that was handed on is of no use then.
    fn go_to(&mut self, unix_s: f64) -> bool;

    /// The moment that it has come to, or is on its way to.
    fn at_s(&self) -> f64;
}

/// See [`Source::next`].
pub enum Next {
    /// Something has come.
    Update(Update),
    /// Nothing has, so far.
    Nothing,
    /// Something is on its way without which there is nothing to show.
    Soon,
    /// Nothing will any more; it stays on its last moment.
    End,
    /// Nothing will any more, and the screen ends.
    Over,
}

/// A living session.
pub struct Living {
    updates: Receiver<Update>,
    /// What it is recorded into.
    folder: Option<Folder>,
    /// Whether marks may have come since they were read.
    has_marks: bool,
}

impl Living {
    /// Of what comes there, and is recorded there, if it is.
    pub fn new(updates: Receiver<Update>, folder: Option<Folder>) -> Self {
        Self { updates, folder, has_marks: false }
    }
}

impl Source for Living {
    fn next(&mut self, _: f64) -> Result<Next> {
        if let Some(folder) = self.folder.as_ref().filter(|_| self.has_marks) {
            self.has_marks = false;
            // What cannot be read the report will say.
            if let Ok(marks) = span::marks(folder) {
                return Ok(Next::Update(Update::Marks(marks)));
            }
        }
        let update = self.updates.try_recv();
        // Others may mark the recording too.
        self.has_marks = matches!(update, Ok(Update::Interval(..)));
        Ok(match update {
            Ok(update) => Next::Update(update),
            Err(TryRecvError::Empty) => Next::Nothing,
            Err(TryRecvError::Disconnected) => Next::Over,
        })
    }

    fn mark(&mut self, mark: &Mark) -> Result<()> {
        self.folder.as_ref().map_or(Ok(()), |folder| span::add(folder, mark))
    }

    fn go_to(&mut self, _: f64) -> bool {
        false
    }

    fn at_s(&self) -> f64 {
        0.0
    }
}

/// Signals that end the screen, or stop it for a while.
struct Signals {
    end: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
}

impl Signals {
    /// From now on they are noted instead of doing what they do.
    fn catch() -> Result<Self> {
        let caught = Self { end: Arc::default(), stop: Arc::default() };
        let failed = "cannot catch signals";
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register(signal, Arc::clone(&caught.end)).context(failed)?;
        }
        signal_hook::flag::register(SIGTSTP, Arc::clone(&caught.stop)).context(failed)?;
        Ok(caught)
    }
}

/// Shows the screen until the user has enough or the source is over.
///
/// # Errors
/// There is no terminal, it is gone, or the source fails.
pub fn show(app: &mut App, source: &mut impl Source) -> Result<()> {
    let signals = Signals::catch()?;
    let mut terminal = ratatui::try_init().context("cannot use the terminal")?;
    let shown = follow(&mut terminal, app, source, &signals);
    // A terminal that is gone needs nothing.
    let _ = ratatui::try_restore();
    shown
}

fn follow(
    terminal: &mut DefaultTerminal,
    app: &mut App,
    source: &mut impl Source,
    signals: &Signals,
) -> Result<()> {
    let mut is_old = true;
    loop {
        let is_drawn = match take(app, source)? {
            Taken::Some => true,
            Taken::Nothing => is_old,
            Taken::NotYet => false,
            Taken::Over => return Ok(()),
        };
        if signals.end.load(Relaxed) {
            return Ok(());
        }
        if signals.stop.swap(false, Relaxed) {
            suspend(terminal)?;
        }
        if is_drawn {
            draw(terminal, app)?;
            is_old = false;
        }
        if !wait()? {
            return Ok(());
        }
        // All keys at once, before the screen that they ask for.
        while event::poll(Duration::ZERO).context("the terminal is gone")? {
            is_old = true;
            let ask = match event::read().context("the terminal is gone")? {
                Event::Key(key) if key.kind != KeyEventKind::Release => app.key(key),
                _ => Ask::Nothing,
            };
            match ask {
                Ask::Nothing => {}
                Ask::Quit => return Ok(()),
                Ask::Redraw => terminal.clear()?,
                Ask::Suspend => suspend(terminal)?,
                Ask::Mark => {
                    app.mark(clock::now()?.realtime_ns / 1_000, |mark| source.mark(mark).is_ok());
                }
                Ask::Seek(by_s) => go_to(app, source, source.at_s() + by_s),
                Ask::GoTo(unix_s) => go_to(app, source, unix_s),
            }
        }
    }
}

fn go_to(app: &mut App, source: &mut impl Source, unix_s: f64) {
    if source.go_to(unix_s) {
        app.clear();
    }
}

/// What a source had.
enum Taken {
    Some,
    Nothing,
    NotYet,
    Over,
}

/// Takes all that is due.
fn take(app: &mut App, source: &mut impl Source) -> Result<Taken> {
    let mut taken = Taken::Nothing;
    // A recording waits for whoever looks at it; a host does not.
    while !(app.is_paused() && app.pace.is_some()) {
        match source.next(app.pace.unwrap_or(1.0))? {
            Next::Update(update) => app.take(update),
            Next::Nothing => break,
            Next::Soon => return Ok(Taken::NotYet),
            Next::End if app.is_over => break,
            Next::End => {
                app.end();
                return Ok(Taken::Some);
            }
            Next::Over => return Ok(Taken::Over),
        }
        taken = Taken::Some;
    }
    Ok(taken)
}

/// Waits for a key, no longer than a tick; false where the terminal is gone. crossterm would look
/// for keys of one that has hung up for ever.
fn wait() -> Result<bool> {
    let stdin = std::io::stdin();
    let mut terminal = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut terminal, TICK) {
        Ok(_) | Err(Errno::EINTR) => {}
        Err(error) => return Err(error).context("cannot wait for keys"),
    }
    let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
    Ok(!terminal[0].revents().is_some_and(|events| events.intersects(gone)))
}

fn draw(terminal: &mut DefaultTerminal, app: &mut App) -> Result<()> {
    terminal.draw(|frame| {
        let area = frame.area();
        frame.render_widget(Paragraph::new(app.lines(area.width, area.height)), area);
    })?;
    Ok(())
}

/// Stops until somebody lets us go on, with the terminal as it was before us meanwhile.
fn suspend(terminal: &mut DefaultTerminal) -> Result<()> {
    ratatui::try_restore()?;
    emulate_default_handler(SIGTSTP).context("cannot stop")?;
    *terminal = ratatui::try_init().context("cannot use the terminal")?;
    terminal.clear()?;
    Ok(())
}
