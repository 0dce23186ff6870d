//! Which VMs the user means.

use crate::model::run::RunVm;
use crate::model::vm::Vm;
use anyhow::{Context, Result, ensure};

/// A name, a uuid, or a glob over either; `id:100` of Proxmox, `namespace/name` of KubeVirt.
#[derive(Clone, Debug)]
pub struct Pattern {
    text: String,
    glob: Option<glob::Pattern>,
    /// The same as KubeVirt names its domains, `namespace_name` (`VMINamespaceKeyFunc`, its
    /// pkg/virt-launcher/virtwrap/api); a namespace has no `_`.
    domain: Option<Box<Pattern>>,
}

impl Pattern {
    /// Reads a pattern. `*`, `?` and `[…]` make it a glob.
    ///
    /// # Errors
    /// A glob that is not well formed, with the position; or there is nothing in it.
    pub fn parse(text: &str) -> Result<Self> {
        ensure!(!text.is_empty(), "it is empty; leave it out to mean every VM");
        let is_glob = text.contains(['*', '?', '[']);
        let glob = is_glob
            .then(|| glob::Pattern::new(text))
            .transpose()
            .context("not a pattern; quote a literal * ? [ as [*] [?] [[]")?;
        let domain = text.split_once('/').filter(|(_, name)| !name.contains('/'));
        let domain = domain.map(|(namespace, name)| Self::parse(&format!("{namespace}_{name}")));
        let domain = domain.transpose()?.map(Box::new);
        Ok(Self { text: text.to_owned(), glob, domain })
    }

    /// Whether it names one VM rather than any number.
    pub fn is_exact(&self) -> bool {
        self.glob.is_none()
    }

    /// Whether it is another VM's name but for the case.
    pub fn is_nearly(&self, vm: &Vm) -> bool {
        self.text.eq_ignore_ascii_case(&vm.name.to_string())
    }

    /// Whether the VM is meant.
    pub fn matches(&self, vm: &Vm) -> bool {
        self.means(&vm.name.to_string(), vm.uuid.as_deref(), vm.proxmox_id.as_deref())
    }

    /// Whether a VM of a recording is meant.
    pub fn matches_recorded(&self, vm: &RunVm) -> bool {
        self.means(&vm.name, vm.uuid.as_deref(), vm.proxmox_id.as_deref())
    }

    fn means(&self, name: &str, uuid: Option<&str>, proxmox_id: Option<&str>) -> bool {
        let is_meant = |text: &str| match &self.glob {
            // A name may hold what makes a glob.
            Some(glob) => self.text == text || glob.matches(text),
            None => self.text.eq_ignore_ascii_case(text) && is_uuid(text) || self.text == text,
        };
        is_meant(name)
            || uuid.is_some_and(is_meant)
            || self.text.strip_prefix("id:").is_some_and(|id| proxmox_id == Some(id))
            || self.domain.as_ref().is_some_and(|domain| domain.means(name, uuid, proxmox_id))
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
        assert!(Pattern::parse("").is_err());
        for pattern in ["web", "Web-01", "web-1*", "5c6a9d3e"] {
            assert!(!matches(pattern), "{pattern}");
        }
        assert!(Pattern::parse("web-[").is_err());
        assert!(Pattern::parse("ns/web-[").is_err());
        assert!(Pattern::parse("web-01").unwrap().is_exact());
    }

    #[test]
    fn managers_have_names_of_their_own() {
        let means = |pattern: &str, name: &str, proxmox_id: Option<&str>| {
            let proxmox_id = proxmox_id.map(str::to_owned);
            let vm = RunVm { name: name.to_owned(), proxmox_id, ..RunVm::default() };
            Pattern::parse(pattern).unwrap().matches_recorded(&vm)
        };
        assert!(means("id:100", "web", Some("100")) && means("id:100", "id:100", None));
        assert!(!means("id:10", "web", Some("100")) && !means("id:100", "web", None));
        assert!(!means("100", "web", Some("100")), "a number alone is a name");
        assert!(means("shop/web", "shop_web", None) && means("shop/*", "shop_db", None));
        assert!(means("shop/web", "shop/web", None) && !means("shop/web", "shop-web", None));
        assert!(Pattern::parse("id:100").unwrap().is_exact());
    }
}
