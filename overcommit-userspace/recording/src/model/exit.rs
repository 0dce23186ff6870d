//! How the process of a VM ended.

use serde::{Deserialize, Deserializer, Serialize};

/// How a process ended, as `wait(2)` tells (`wait_task_zombie`, kernel/exit.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Exit {
    /// By itself, with this status.
    Status(u8),
    /// By a signal of this number.
    Signal(u8),
}

/// Signals that end a process: their numbers on x86-64 and arm64, their names, and whether one
/// means that the process failed.
const SIGNALS: [(u8, &str, bool); 16] = [
    (1, "SIGHUP", false),
    (2, "SIGINT", false),
    (3, "SIGQUIT", true),
    (4, "SIGILL", true),
    (5, "SIGTRAP", true),
    (6, "SIGABRT", true),
    (7, "SIGBUS", true),
    (8, "SIGFPE", true),
    (9, "SIGKILL", false),
    (11, "SIGSEGV", true),
    (13, "SIGPIPE", true),
    (14, "SIGALRM", true),
    (15, "SIGTERM", false),
    (24, "SIGXCPU", true),
    (25, "SIGXFSZ", true),
    (31, "SIGSYS", true),
];

/// What the kernel sends to a process that touches memory for which there is no page.
pub const NO_PAGE: Exit = Exit::Signal(7);

/// SIGKILL.
pub const KILLED: Exit = Exit::Signal(9);

/// As serde has it, but that of a later version, which is not known, is `None`.
pub(crate) fn known<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Exit>, D::Error> {
    let value = Option::<serde_json::Value>::deserialize(from)?;
    Ok(value.and_then(|value| serde_json::from_value(value).ok()))
}

impl Exit {
    /// Out of the kernel's word: the signal in the low seven bits, or the status in the second
    /// byte.
    pub fn of(exit_code: u32) -> Self {
        match exit_code as u8 & 0x7f {
            0 => Self::Status((exit_code >> 8) as u8),
            signal => Self::Signal(signal),
        }
    }

    /// As a shell has it.
    pub fn code(self) -> u32 {
        match self {
            Self::Status(status) => u32::from(status),
            Self::Signal(signal) => 128 + u32::from(signal),
        }
    }

    /// Whether the process failed: by itself, or by what it did.
    pub fn is_failure(self) -> bool {
        match self {
            Self::Status(status) => status != 0,
            Self::Signal(_) => self.signal().is_none_or(|(_, _, is_failure)| *is_failure),
        }
    }

    /// In words: `was killed by SIGSEGV`, `exited with status 1`.
    pub fn words(self) -> String {
        match (self, self.signal()) {
            (Self::Status(status), _) => format!("exited with status {status}"),
            (_, Some((_, name, _))) => format!("was killed by {name}"),
            (Self::Signal(signal), None) => format!("was killed by signal {signal}"),
        }
    }

    fn signal(self) -> Option<&'static (u8, &'static str, bool)> {
        let Self::Signal(signal) = self else { return None };
        SIGNALS.iter().find(|(number, _, _)| *number == signal)
    }
}

/// What its monitor or its manager says of a VM's end: the process exits alike in most of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Departure {
    /// It runs on another host now.
    Migrated,
    /// Its guest shut down, or was asked to.
    ShutDown,
    /// Somebody had libvirt end it at once.
    Destroyed,
    /// Its state was saved to a file.
    Saved,
    /// Its guest's kernel had panicked.
    Panicked,
    /// QEMU could not go on with it.
    Failed,
    /// What a later version knows.
    #[serde(other)]
    Other,
}

impl Departure {
    /// In words that follow its name; `None` if it is not known.
    pub const fn words(self) -> Option<&'static str> {
        match self {
            Self::Migrated => Some("was migrated away"),
            Self::ShutDown => Some("was shut down"),
            Self::Destroyed => Some("was destroyed through libvirt"),
            Self::Saved => Some("was saved to a file and stopped"),
            Self::Panicked => Some("ended after a panic of its guest"),
            Self::Failed => Some("ended after an error within QEMU"),
            Self::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_says_of_an_end() {
        for (exit_code, exit, code, words, is_failure) in [
            (0, Exit::Status(0), 0, "exited with status 0", false),
            (1 << 8, Exit::Status(1), 1, "exited with status 1", true),
            (9, Exit::Signal(9), 137, "was killed by SIGKILL", false),
            // With a core dump.
            (0x80 | 11, Exit::Signal(11), 139, "was killed by SIGSEGV", true),
            (7, NO_PAGE, 135, "was killed by SIGBUS", true),
            (40, Exit::Signal(40), 168, "was killed by signal 40", true),
        ] {
            assert_eq!(Exit::of(exit_code), exit);
            assert_eq!((exit.code(), exit.words()), (code, words.to_owned()));
            assert_eq!(exit.is_failure(), is_failure, "{words}");
        }
    }
}
