//! Which VMs the user means.

use crate::model::vm::Vm;
use anyhow::{Context, Result};

/// A name, a uuid, or a glob over either.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    glob: Option<glob::Pattern>,
}

impl Pattern {
    /// Reads a pattern. `*`, `?` and `[…]` make it a glob.
    ///
    /// # Errors
    /// A glob that is not well formed, with the position.
    pub fn parse(text: &str) -> Result<Self> {
        let is_glob = text.contains(['*', '?', '[']);
        let glob = is_glob
            .then(|| glob::Pattern::new(text))
            .transpose()
            .context("not a pattern; quote a literal * ? [ as [*] [?] [[]")?;
        Ok(Self { text: text.to_owned(), glob })
    }

    /// Whether it names one VM rather than any number.
    pub fn is_exact(&self) -> bool {
        self.glob.is_none()
    }

    /// Whether the VM is meant.
    pub fn matches(&self, vm: &Vm) -> bool {
        self.means(&vm.name.to_string(), vm.uuid.as_deref())
    }

    /// Whether a VM is meant, by its name as shown or by its uuid.
    pub fn means(&self, name: &str, uuid: Option<&str>) -> bool {
        let is_meant = |text: &str| match &self.glob {
            // A name may hold what makes a glob.
            Some(glob) => self.text == text || glob.matches(text),
            None => self.text.eq_ignore_ascii_case(text) && is_uuid(text) || self.text == text,
        };
        is_meant(name) || uuid.is_some_and(is_meant)
    }
}

/// A uuid may be typed in either case; names differ by case.
fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::vm::tests::vm;

    fn matches(pattern: &str) -> bool {
        let mut vm = vm("web-01");
        vm.uuid = Some("5c6a9d3e-0000-4444-8888-abcdefabcdef".to_owned());
        Pattern::parse(pattern).unwrap().matches(&vm)
    }

    #[test]
    fn names_uuids_and_globs() {
        for pattern in
            ["web-01", "web-*", "*", "web-0?", "5c6a9d3e-*", "5C6A9D3E-0000-4444-8888-ABCDEFABCDEF"]
        {
            assert!(matches(pattern), "{pattern}");
        }
        for pattern in ["web", "Web-01", "web-1*", "", "5c6a9d3e"] {
            assert!(!matches(pattern), "{pattern}");
        }
        assert!(Pattern::parse("web-[").is_err());
        assert!(Pattern::parse("web-01").unwrap().is_exact());
    }
}
