//! The keys, and what the columns mean.

use crate::top::look::{Look, Tone};
use ratatui::text::Line;

const TEXT: &str = "\
MOVE     ↑ ↓  j k    select               Enter   open the VM    Esc  back
         PgUp PgDn   a page               g G     first, last
LIST     s S         sort by the next column, reverse the order
         / TEXT      filter by name, verdict or cause
         h           hurt VMs only
TIME     p  space    pause, go on         ← →     one interval back, on
         ( )         ten back, on         0       back to now
         [ ]         mark before, after  m       mark this moment (live)
REPLAY   + -         faster, slower       { }     a minute back, on
VM       Tab         next metric          ↑ ↓     next VM
OTHER    r           redraw               q       quit

VERDICT  of the last minute, as in a report. KILLED, CRASHED, THRASHED, SLOWED
         and STARVED VMs are hurt by the host or by their own limit.
         CAUSE: it takes memory from others and is not hurt itself.
STALL    share of its vCPUs' time spent waiting for memory, in this interval
CPU      the same, waiting for a CPU: more memory does not help
MAJ/s    major faults per second; P50, P99, MAX: how long they took
IN/s     MiB per second read back from swap
LOST/s   MiB per second taken from it; LOST TO: who takes most of it
NEEDS    its working set and its RAM, in GiB; <= is a bound, not a measurement
-        none, or too few to tell. ? is not seen, which is never a zero.";

/// The whole text; it is cut where there is no room.
pub(super) fn lines(look: Look, width: u16) -> Vec<Line<'static>> {
    let mut lines = vec![look.line("overcommit top  help, any key goes back", Tone::Strong)];
    lines.push(look.rule(width));
    lines.extend(TEXT.lines().map(|line| look.line(line, Tone::Plain)));
    lines
}
