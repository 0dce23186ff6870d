//! ZFS's cache, which is no page cache: MemAvailable does not have it.

use std::fs;
use std::path::Path;

/// What the cache (ARC) takes, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arc {
    /// All of it.
    pub(super) size: u64,
    /// What of that is given back when memory is short: clean data that nobody holds, down to the
    /// least that ZFS keeps (`c_min`). As `arc_evictable_memory` has it (OpenZFS, arc_os.c).
    pub(super) evictable: u64,
}

/// Rows whose sum can be evicted at once.
const EVICTABLE: [&str; 4] = [
    "mru_evictable_data",
    "mru_evictable_metadata",
    "mfu_evictable_data",
    "mfu_evictable_metadata",
];

impl Arc {
    /// Reads it below `proc`: lines of name, type and figure. Nothing where there is no ZFS, or where
    /// it takes more than is `used`, as where a container sees its own memory and its host's cache.
    pub(super) fn read(proc: &Path, used: u64) -> Self {
        let text = fs::read_to_string(proc.join("spl/kstat/zfs/arcstats")).unwrap_or_default();
        let row = |name: &str| -> Option<u64> {
            let line = text.lines().find(|line| line.split_whitespace().next() == Some(name))?;
            line.split_whitespace().last()?.parse().ok()
        };
        let found = || {
            let size = row("size").filter(|size| *size <= used)?;
            let above = size.saturating_sub(row("c_min")?);
            let clean = EVICTABLE.into_iter().map(row).sum::<Option<u64>>()?;
            Some(Self { size, evictable: clean.min(above) })
        };
        found().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_clean_and_above_the_least_is_given_back() {
        let proc = tempfile::tempdir().unwrap();
        assert_eq!(Arc::read(proc.path(), u64::MAX), Arc::default());
        let folder = proc.path().join("spl/kstat/zfs");
        fs::create_dir_all(&folder).unwrap();
        let write = |data: u64| {
            let rows = format!(
                "9 1 0x01 147 39984 5 9\nname type data\nc 4 900\nc_min 4 300\nsize 4 1000\n\
                 mru_size 4 5\nmru_evictable_data 4 {data}\nmru_evictable_metadata 4 20\n\
                 mfu_evictable_data 4 100\nmfu_evictable_metadata 4 30\n"
            );
            fs::write(folder.join("arcstats"), rows).unwrap();
        };
        write(250);
        assert_eq!(Arc::read(proc.path(), 1_000), Arc { size: 1_000, evictable: 400 });
        write(800);
        assert_eq!(Arc::read(proc.path(), 1_000), Arc { size: 1_000, evictable: 700 });
        assert_eq!(Arc::read(proc.path(), 999), Arc::default());
    }
}
