//! The terminal that shows the screen, and is left as it was found: at the end, in a panic, on a
//! signal, and while the program is stopped.

use crate::top::Update;
use crate::top::app::{App, Ask};
use anyhow::{Context, Result};
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::widgets::Paragraph;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGTSTP};
use signal_hook::low_level::emulate_default_handler;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, TryRecvError};
use std::time::Duration;

/// Time between two looks for what has come.
const TICK: Duration = Duration::from_millis(100);

/// Where intervals come from.
pub trait Source {
    /// What comes next, if anything is due: so many times as fast as it was recorded, where it was.
    ///
    /// # Errors
    /// It cannot be read.
    fn next(&mut self, pace: f64) -> Result<Next>;

    /// Goes to that moment, in Unix seconds, if it can; nothing before it is of use any more then.
    ///
    /// # Errors
    /// It cannot be read.
    fn seek(&mut self, unix_s: f64) -> Result<bool>;
}

/// See [`Source::next`].
pub enum Next {
    /// Something has come.
    Update(Update),
    /// Nothing has, so far.
    Nothing,
    /// Nothing will any more, and the screen ends.
    Over,
}

/// A living session.
impl Source for Receiver<Update> {
    fn next(&mut self, _: f64) -> Result<Next> {
        Ok(match self.try_recv() {
            Ok(update) => Next::Update(update),
            Err(TryRecvError::Empty) => Next::Nothing,
            Err(TryRecvError::Disconnected) => Next::Over,
        })
    }

    fn seek(&mut self, _: f64) -> Result<bool> {
        Ok(false)
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
        while !(app.is_paused() && app.pace.is_some()) {
            match source.next(app.pace.unwrap_or(1.0))? {
                Next::Update(update) => app.take(update),
                Next::Nothing => break,
                Next::Over => return Ok(()),
            }
            is_old = true;
        }
        if signals.end.load(Relaxed) {
            return Ok(());
        }
        if signals.stop.swap(false, Relaxed) {
            suspend(terminal)?;
            is_old = true;
        }
        if is_old {
            draw(terminal, app)?;
            is_old = false;
        }
        if !event::poll(TICK).context("the terminal is gone")? {
            continue;
        }
        is_old = true;
        let ask = match event::read().context("the terminal is gone")? {
            Event::Key(key) if key.kind != KeyEventKind::Release => app.key(key),
            Event::Resize(..) => Ask::Nothing,
            _ => continue,
        };
        match ask {
            Ask::Nothing => {}
            Ask::Quit => return Ok(()),
            Ask::Redraw => terminal.clear()?,
            Ask::Suspend => suspend(terminal)?,
            Ask::Seek(unix_s) => {
                if source.seek(unix_s)? {
                    app.clear();
                }
            }
        }
    }
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
