//! Idle page tracking: pages are marked idle, and whoever touches one, guests through
//! their own page tables included, makes it not idle any more (mm/page_idle.c).
//!
//! A look at each page would take as long as the memory is large, so a sample of pages
//! stands for all; the range holds the error of that.

use crate::host::overcommit::Range;
use crate::vm::memory::Mapping;
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Pages of a VM that are looked at, at most.
const SAMPLE: u64 = 8_192;
/// Of a page's entry in pagemap: it is there, and in which frame
/// (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const FRAME: u64 = (1 << 55) - 1;
/// Bits of /proc/kpageflags (include/uapi/linux/kernel-page-flags.h).
const COMPOUND_HEAD: u64 = 1 << 15;
const COMPOUND_TAIL: u64 = 1 << 16;
const ZERO_PAGE: u64 = 1 << 24;
/// Frames of the largest page of several frames that the kernel makes of its own.
const LARGE: u64 = 512;

/// The files by which pages are marked.
pub struct PageIdle {
    bitmap: File,
    flags: File,
}

/// A page of the sample.
#[derive(Clone, Copy, Debug)]
struct Sampled {
    /// Its number among the process's pages.
    page: u64,
    /// Its frame, and that of the first page that belongs to it.
    frames: Option<(u64, u64)>,
}

/// Pages of a VM that were marked idle.
pub struct Marked {
    pagemap: File,
    sample: Vec<Sampled>,
    pages: u64,
    page_size: u64,
}

/// Why it cannot be used.
///
/// # Errors
/// The kernel does not have it.
pub fn check(sys: &Path) -> Result<()> {
    ensure!(
        sys.join("kernel/mm/page_idle/bitmap").exists(),
        "this kernel has no idle page tracking"
    );
    Ok(())
}

impl PageIdle {
    /// Opens it.
    ///
    /// # Errors
    /// See [`check`].
    pub fn open(proc: &Path, sys: &Path) -> Result<Self> {
        check(sys)?;
        let bitmap = sys.join("kernel/mm/page_idle/bitmap");
        let bitmap = OpenOptions::new().read(true).write(true).open(bitmap);
        let bitmap = bitmap.context("cannot open the bitmap of idle pages")?;
        let flags = File::open(proc.join("kpageflags")).context("cannot open kpageflags")?;
        Ok(Self { bitmap, flags })
    }

    /// Marks a sample of the VM's pages.
    ///
    /// # Errors
    /// The VM is gone, or the kernel hides its frames.
    pub fn mark(&self, proc: &Path, pid: i32, memory: Mapping, page_size: u64) -> Result<Marked> {
        let pagemap = File::open(proc.join(format!("{pid}/pagemap")))?;
        let pages = (memory.end - memory.start) / page_size;
        let first = memory.start / page_size;
        let mut marked = Marked { pagemap, sample: Vec::new(), pages, page_size };
        for page in spread(pages) {
            let page = first + page;
            let frame = marked.frame(page)?;
            let frames = match frame {
                Some(frame) => self.head(frame)?.map(|head| (frame, head)),
                None => None,
            };
            if frame.is_some() && frames.is_none() {
                // Nobody has written to it yet: it takes no memory.
                continue;
            }
            if let Some((_, head)) = frames {
                let word = 1u64 << (head % 64);
                // Bits that are not set change nothing.
                self.bitmap.write_all_at(&word.to_ne_bytes(), head / 64 * 8)?;
            }
            marked.sample.push(Sampled { page, frames });
        }
        Ok(marked)
    }

    /// The first frame of the page that a frame belongs to, which alone can be marked;
    /// none of the zero page.
    fn head(&self, frame: u64) -> Result<Option<u64>> {
        let first = frame - frame % LARGE;
        let mut flags = [0; 8 * LARGE as usize];
        let mut of = |frame: u64| -> Result<u64> {
            let word = &mut flags[..8];
            self.flags.read_exact_at(word, frame * 8)?;
            Ok(u64::from_ne_bytes(word.try_into()?))
        };
        let own = of(frame)?;
        if own & ZERO_PAGE != 0 {
            return Ok(None);
        }
        if own & COMPOUND_TAIL == 0 {
            return Ok(Some(frame));
        }
        self.flags.read_exact_at(&mut flags, first * 8)?;
        let head = (first..frame).rev().find(|candidate| {
            let at = 8 * (candidate - first) as usize;
            let word = flags[at..at + 8].try_into().map(u64::from_ne_bytes).unwrap_or(0);
            word & COMPOUND_HEAD != 0
        });
        Ok(Some(head.unwrap_or(first)))
    }

    /// How much was touched since.
    ///
    /// # Errors
    /// The VM is gone.
    pub fn look(&self, marked: &Marked) -> Result<Range> {
        let mut words: HashMap<u64, u64> = HashMap::new();
        let mut touched = 0;
        for sampled in &marked.sample {
            let now = marked.frame(sampled.page)?;
            touched += u64::from(match (sampled.frames, now) {
                // It came since, or came back.
                (None, now) => now.is_some(),
                (Some(_), None) => false,
                (Some((frame, _)), Some(now)) if frame != now => true,
                (Some((_, head)), Some(_)) => {
                    let at = head / 64 * 8;
                    let word = match words.get(&at) {
                        Some(word) => *word,
                        None => {
                            let mut word = [0; 8];
                            self.bitmap.read_exact_at(&mut word, at)?;
                            *words.entry(at).or_insert(u64::from_ne_bytes(word))
                        }
                    };
                    word >> (head % 64) & 1 == 0
                }
            });
        }
        let looked = marked.sample.len() as u64;
        let (lower, upper) = share(touched, looked, marked.pages);
        let bytes = |share: f64| (share * (marked.pages * marked.page_size) as f64) as u64;
        Ok(Range { lower: bytes(lower), upper: bytes(upper) })
    }
}

impl Marked {
    /// The frame of a page, if it is there.
    fn frame(&self, page: u64) -> Result<Option<u64>> {
        let mut entry = [0; 8];
        self.pagemap.read_exact_at(&mut entry, page * 8)?;
        let entry = u64::from_ne_bytes(entry);
        if entry & PRESENT == 0 {
            return Ok(None);
        }
        ensure!(
            entry & FRAME != 0,
            "the kernel hides the frames of pages: CAP_SYS_ADMIN is missing"
        );
        Ok(Some(entry & FRAME))
    }
}

/// Pages that stand for all: one out of each of as many equal parts, anywhere in it, so
/// that no pattern of the guest's is met or missed.
fn spread(pages: u64) -> Vec<u64> {
    if pages <= SAMPLE {
        return (0..pages).collect();
    }
    let random = RandomState::new();
    let edge = |part: u64| (u128::from(part) * u128::from(pages) / u128::from(SAMPLE)) as u64;
    let pick = |part| {
        let (start, end) = (edge(part), edge(part + 1));
        start + random.hash_one(part) % (end - start)
    };
    (0..SAMPLE).map(pick).collect()
}

/// The share of all that was touched: 95 % of such ranges hold it (Wilson's interval).
/// Exact where all were looked at.
fn share(touched: u64, looked: u64, all: u64) -> (f64, f64) {
    if looked == 0 {
        return (0.0, 0.0);
    }
    // What was left out takes no memory, so it is not touched either.
    let seen = if all <= SAMPLE { all } else { SAMPLE } as f64;
    let share = touched as f64 / seen;
    if all <= SAMPLE {
        return (share, share);
    }
    let z = 1.96_f64;
    let (weight, n) = (z * z / seen, seen);
    let middle = (share + weight / 2.0) / (1.0 + weight);
    let half = z / (1.0 + weight) * (share * (1.0 - share) / n + weight / (4.0 * n)).sqrt();
    ((middle - half).max(0.0), (middle + half).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_spread_over_all_and_meets_no_pattern() {
        assert_eq!(spread(3), [0, 1, 2]);
        let pages = 16 << 20;
        let sample = spread(pages);
        assert_eq!(sample.len() as u64, SAMPLE);
        assert!(sample.is_sorted() && sample.iter().all(|page| *page < pages));
        let every_64th = sample.iter().filter(|page| *page % 64 == 0).count() as u64;
        let (lower, upper) = share(every_64th, SAMPLE, pages);
        // Once in 10 million runs it is further off.
        assert!(lower < 1.0 / 64.0 * 1.3 && upper > 1.0 / 64.0 / 1.3, "{lower} to {upper}");
    }

    #[test]
    fn the_range_narrows_with_what_is_looked_at() {
        assert_eq!(share(10, 100, 100), (0.1, 0.1));
        assert_eq!(share(0, 0, 1 << 20), (0.0, 0.0));
        let (lower, upper) = share(819, SAMPLE, 1 << 20);
        assert!(lower > 0.093 && upper < 0.107, "{lower} to {upper}");
        let (lower, upper) = share(0, SAMPLE, 1 << 20);
        assert!(lower == 0.0 && upper < 0.001, "{lower} to {upper}");
        // What takes no memory was left out.
        assert_eq!(share(10, 20, 100), (0.1, 0.1));
    }
}
