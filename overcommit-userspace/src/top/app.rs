//! What is looked at: which moment, which VM, in which order. It takes keys and gives lines, and
//! knows no terminal.

use crate::top::columns::{COLUMNS, Order, verdict};
use crate::top::look::{Look, Tone};
use crate::top::moment::PACE;
use crate::top::{Update, help, list, vm};
use overcommit_recording::model::run::Run;
use overcommit_recording::model::slow_fault::SlowFault;
use overcommit_recording::recent::{Board, History, VmRow};
use overcommit_recording::recording::span::Mark;
use overcommit_recording::slo::Objective;
use overcommit_recording::summary::verdict::Fared;
use overcommit_recording::view::cut;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::text::{Line, Span};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// Slow faults that are kept of a VM, and VMs of which some are.
const SLOW: usize = 200;
const SLOW_VMS: usize = 200;
/// Lines of a page.
const MANY: isize = 10;

/// What the keys ask of whoever shows the screen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Ask {
    /// Nothing more.
    Nothing,
    /// The screen anew.
    Redraw,
    /// To stop, as any program does on Ctrl-Z.
    Suspend,
    /// The end.
    Quit,
    /// So many seconds further on in the recording, or back.
    Seek(f64),
    /// That moment of the recording, in Unix seconds.
    GoTo(f64),
    /// A mark for this moment.
    Mark,
}

/// What a screen shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum View {
    List,
    Vm,
    Help,
}

/// The state of the screen.
pub struct App {
    pub(super) look: Look,
    objectives: Vec<Objective>,
    pub(super) run: Arc<Run>,
    pub(super) history: History,
    /// At the moment that is shown; `None` before the first interval.
    pub(super) board: Option<Board>,
    /// By VM.
    pub(super) slow: BTreeMap<String, VecDeque<SlowFault>>,
    pub(super) marks: Vec<Mark>,
    view: View,
    /// What help goes back to.
    view_before: View,
    /// Whether nothing more will come.
    pub(super) is_over: bool,
    /// The number of the interval that is shown; the last one if not given.
    pub(super) at: Option<u64>,
    /// The moment that was asked for and has not come yet, in Unix microseconds.
    pub(super) sought_us: Option<u64>,
    /// How fast a recording is replayed; `None` of a living session.
    pub(super) pace: Option<f64>,
    selected: Option<String>,
    pub(super) order: Order,
    pub(super) filter: String,
    pub(super) edits_filter: bool,
    pub(super) hurt_only: bool,
    pub(super) metric: usize,
}

impl App {
    /// Of a living session, or of a recording that is replayed.
    pub fn new(look: Look, objectives: Vec<Objective>, is_replay: bool) -> Self {
        Self {
            look,
            objectives,
            run: Arc::default(),
            history: History::default(),
            board: None,
            slow: BTreeMap::new(),
            marks: Vec::new(),
            view: View::List,
            view_before: View::List,
            is_over: false,
            at: None,
            sought_us: None,
            pace: is_replay.then_some(PACE[0]),
            selected: None,
            order: Order::default(),
            filter: String::new(),
            edits_filter: false,
            hurt_only: false,
            metric: 0,
        }
    }

    /// Takes what has come.
    pub fn take(&mut self, update: Update) {
        self.is_over = false;
        match update {
            Update::Interval(run, interval) => {
                self.history.add(&run, *interval);
                self.run = run;
                self.pause_at_sought();
                if self.at.is_none() && self.history.is_whole() {
                    self.board = None;
                }
            }
            Update::Marks(marks) => self.take_marks(marks),
            Update::SlowFaults(faults) => {
                for (vm_id, fault) in faults {
                    if self.slow.len() < SLOW_VMS || self.slow.contains_key(&vm_id) {
                        let of_vm = self.slow.entry(vm_id).or_default();
                        of_vm.push_back(fault);
                        of_vm.drain(..of_vm.len().saturating_sub(SLOW));
                    }
                }
            }
        }
    }

    /// Nothing more will come.
    pub fn end(&mut self) {
        self.is_over = true;
    }

    /// Forgets what it knows: another part of the recording comes.
    pub fn clear(&mut self) {
        (self.history, self.board, self.at) = (History::default(), None, None);
        self.slow.clear();
    }

    /// Whether time stands still.
    pub fn is_paused(&self) -> bool {
        self.at.is_some()
    }

    /// What it shows, as a program reads it; `None` before the first interval.
    pub fn board(&mut self) -> Option<&Board> {
        if self.board.is_none() {
            let board =
                self.now().map(|now| Board::of(&self.run, &self.history, now, &self.objectives));
            self.board = board;
        }
        self.board.as_ref()
    }

    /// The screen: no line is longer than the terminal is wide.
    pub fn lines(&mut self, columns: u16, rows: u16) -> Vec<Line<'static>> {
        let lines = self.view_lines(columns, rows);
        let lines = lines.into_iter().take(rows.max(1).into());
        lines.map(|line| clipped(line, columns.into())).collect()
    }

    /// The same without the keys, for a printer.
    pub fn printed(&mut self, columns: u16, rows: u16) -> Vec<Line<'static>> {
        let selected = self.selected();
        let lines = list::lines(self, selected.as_ref(), columns, rows, false);
        lines.into_iter().map(|line| clipped(line, columns.into())).collect()
    }

    fn view_lines(&mut self, columns: u16, rows: u16) -> Vec<Line<'static>> {
        if self.view == View::Help {
            return help::lines(self.look, columns);
        }
        if self.board().is_none() {
            let word = match (self.pace, self.is_over) {
                (None, _) => "waiting for the first interval; q quits",
                (Some(_), false) => "reading the recording; q quits",
                (Some(_), true) => "the recording has no interval; q quits",
            };
            return vec![self.look.line(format!("overcommit top: {word}"), Tone::Plain)];
        }
        if self.view == View::List {
            let selected = self.selected();
            return list::lines(self, selected.as_ref(), columns, rows, true);
        }
        match self.opened() {
            Some(vm) => vm::lines(self, &vm, columns, rows),
            None => {
                let gone = "this VM is not there any more, or not yet; Esc goes back";
                vec![self.look.line(gone, Tone::Plain)]
            }
        }
    }

    /// The VM whose screen it is.
    fn opened(&self) -> Option<VmRow> {
        let mut vms = self.board.iter().flat_map(|board| &board.vms);
        vms.find(|row| self.selected.as_ref() == Some(&row.vm_id)).cloned()
    }

    /// The VMs that pass the filter, in their order.
    pub(super) fn rows(&self) -> Vec<&VmRow> {
        let Some(board) = &self.board else { return Vec::new() };
        let filter = self.filter.to_lowercase();
        let has = |text: &str| text.to_lowercase().contains(&filter);
        let passes = |row: &&VmRow| {
            let why = row.verdict.why.as_deref();
            (!self.hurt_only || row.verdict.fared > Fared::Unseen)
                && (filter.is_empty()
                    || has(&row.vm)
                    || has(verdict(row).0)
                    || why.is_some_and(has))
        };
        let mut rows: Vec<&VmRow> = board.vms.iter().filter(passes).collect();
        self.order.sort(&mut rows);
        rows
    }

    /// The VM that is chosen: the first one, if it is none of those.
    fn selected(&self) -> Option<VmRow> {
        let rows = self.rows();
        let is = |row: &&&VmRow| self.selected.as_ref() == Some(&row.vm_id);
        rows.iter().find(is).or(rows.first()).map(|row| (*row).clone())
    }

    /// Chooses the VM that many lines further down.
    fn choose(&mut self, by: isize) {
        let rows = self.rows();
        let now = self.selected.as_ref();
        let now = rows.iter().position(|row| now == Some(&row.vm_id)).unwrap_or(0);
        let next = now.saturating_add_signed(by).min(rows.len().saturating_sub(1));
        self.selected = rows.get(next).map(|row| row.vm_id.clone());
    }

    /// What a key asks for.
    pub fn key(&mut self, key: KeyEvent) -> Ask {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            match key.code {
                KeyCode::Char('c') => return Ask::Quit,
                KeyCode::Char('z') => return Ask::Suspend,
                KeyCode::Char('l') => return Ask::Redraw,
                _ => {}
            }
        }
        if self.edits_filter {
            self.edit_filter(key.code);
            return Ask::Nothing;
        }
        if self.view == View::Help {
            self.view = self.view_before;
            return if key.code == KeyCode::Char('q') { Ask::Quit } else { Ask::Nothing };
        }
        match key.code {
            KeyCode::Char('q') => return Ask::Quit,
            KeyCode::Char('r') => return Ask::Redraw,
            KeyCode::Char('?') => (self.view_before, self.view) = (self.view, View::Help),
            KeyCode::Up | KeyCode::Char('k') => self.choose(-1),
            KeyCode::Down | KeyCode::Char('j') => self.choose(1),
            KeyCode::PageUp => self.choose(-MANY),
            KeyCode::PageDown => self.choose(MANY),
            KeyCode::Home | KeyCode::Char('g') => self.choose(isize::MIN),
            KeyCode::End | KeyCode::Char('G') => self.choose(isize::MAX),
            KeyCode::Enter => {
                // The one that is looked at stays, whichever is the first later on.
                self.selected = self.selected().map(|row| row.vm_id);
                self.view = View::Vm;
            }
            KeyCode::Esc if self.view == View::Vm => self.view = View::List,
            KeyCode::Esc => (self.filter, self.hurt_only) = (String::new(), false),
            KeyCode::Tab => self.metric = self.metric.wrapping_add(1),
            KeyCode::Char('/') => (self.view, self.edits_filter) = (View::List, true),
            KeyCode::Char('h') => self.hurt_only = !self.hurt_only,
            KeyCode::Char('s') => self.order.next(COLUMNS.len()),
            KeyCode::Char('S') => self.order.reverse(),
            _ => return self.time_key(key.code),
        }
        Ask::Nothing
    }

    fn edit_filter(&mut self, code: KeyCode) {
        match code {
            KeyCode::Char(character) => self.filter.push(character),
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Esc => (self.filter, self.edits_filter) = (String::new(), false),
            KeyCode::Enter => self.edits_filter = false,
            _ => {}
        }
    }
}

/// What fits into so many columns.
fn clipped(line: Line<'static>, columns: usize) -> Line<'static> {
    if line.width() <= columns {
        return line;
    }
    let mut left = columns;
    let spans = line.spans.into_iter().map(|span| {
        let span = Span::styled(cut(&span.content, left), span.style);
        left = left.saturating_sub(span.width());
        span
    });
    Line::from(spans.collect::<Vec<_>>())
}
