//! The user who has become root, and is to own what is written and to run COMMAND.

use anyhow::{Context, Result, bail};
use nix::unistd::{Gid, Uid, User, getgrouplist};
use rustix::thread::{
    CapabilitySet, CapabilitySets, set_capabilities, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};
use std::ffi::CString;
use std::thread;

/// A user and a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Owner {
    /// The user behind sudo, run0, doas or pkexec, by the variables that these set; `None` if
    /// root is nobody else.
    ///
    /// # Errors
    /// A variable is set and does not say who: root would be taken for the user.
    pub fn behind_sudo() -> Result<Option<Self>> {
        // Who became somebody else than root can give nothing away.
        if !rustix::process::geteuid().is_root() {
            return Ok(None);
        }
        behind(|name| std::env::var_os(name).map(|value| value.to_string_lossy().into_owned()))
    }
}

/// Does something with files as that user, in a thread of its own: the kernel then refuses what the
/// user may not do, whatever path they name. As whoever we are without one.
///
/// # Errors
/// As `act`, or this process may not become the user.
pub fn as_user<T: Send>(owner: Option<Owner>, act: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let is_other = |owner: &Owner| owner.uid != rustix::process::geteuid().as_raw();
    let Some(owner) = owner.filter(is_other) else { return act() };
    let groups = owner.groups()?;
    let acted = thread::scope(|scope| {
        let acts = thread::Builder::new().spawn_scoped(scope, || {
            owner.becomes_this_thread(&groups).with_context(|| {
                format!("cannot act as the user {}, who ran overcommit as root", owner.uid)
            })?;
            act().map_err(|error| match is_denied(&error) {
                true => error.context(format!(
                    "as the user {} (unset SUDO_UID and SUDO_GID to do it as root)",
                    owner.uid
                )),
                false => error,
            })
        });
        acts.map(thread::ScopedJoinHandle::join)
    });
    acted
        .context("cannot start a thread")?
        .unwrap_or_else(|_| bail!("what is done as the user {} did not end", owner.uid))
}

fn is_denied(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::PermissionDenied)
}

impl Owner {
    /// The groups that the user is in; of one without a name only the first.
    ///
    /// # Errors
    /// The users or groups cannot be read.
    pub fn groups(self) -> Result<Vec<Gid>> {
        let gid = Gid::from_raw(self.gid);
        match User::from_uid(Uid::from_raw(self.uid))? {
            Some(user) => Ok(getgrouplist(&CString::new(user.name)?, gid)?),
            None => Ok(vec![gid]),
        }
    }

    /// For good: the calls are the kernel's own, and change one thread.
    fn becomes_this_thread(self, groups: &[Gid]) -> rustix::io::Result<()> {
        let groups: Vec<_> =
            groups.iter().map(|group| rustix::thread::Gid::from_raw(group.as_raw())).collect();
        let (uid, gid) =
            (rustix::thread::Uid::from_raw(self.uid), rustix::thread::Gid::from_raw(self.gid));
        set_thread_groups(&groups)?;
        set_thread_res_gid(gid, gid, gid)?;
        set_thread_res_uid(uid, uid, uid)?;
        // The kernel has taken them away, unless the process was told to keep them.
        let none = CapabilitySet::empty();
        set_capabilities(
            None,
            CapabilitySets { effective: none, permitted: none, inheritable: none },
        )
    }
}

fn behind(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Owner>> {
    let owner = match (variable("SUDO_UID"), variable("SUDO_GID")) {
        (Some(uid), Some(gid)) => Owner { uid: id("SUDO_UID", &uid)?, gid: id("SUDO_GID", &gid)? },
        (Some(_), None) => bail!("SUDO_UID is set and SUDO_GID is not; set both or neither"),
        (None, Some(_)) => bail!("SUDO_GID is set and SUDO_UID is not; set both or neither"),
        (None, None) => match (variable("DOAS_USER"), variable("PKEXEC_UID")) {
            (Some(name), _) => of(User::from_name(&name)?, "DOAS_USER", &name)?,
            (None, Some(uid)) => {
                let user = User::from_uid(Uid::from_raw(id("PKEXEC_UID", &uid)?))?;
                of(user, "PKEXEC_UID", &uid)?
            }
            (None, None) => return Ok(None),
        },
    };
    Ok((owner.uid != 0).then_some(owner))
}

fn id(variable: &str, value: &str) -> Result<u32> {
    // The last one stands for "unchanged" in the kernel's calls.
    let id = value.parse().ok().filter(|id| *id != u32::MAX);
    id.with_context(|| format!("{variable} is {value:?}, which is no id; unset it, or use sudo"))
}

fn of(user: Option<User>, variable: &str, value: &str) -> Result<Owner> {
    let user =
        user.with_context(|| format!("{variable} is {value:?}, and there is no such user"))?;
    Ok(Owner { uid: user.uid.as_raw(), gid: user.gid.as_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by(variables: &[(&str, &str)]) -> Result<Option<Owner>> {
        behind(|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn nobody_is_root_by_mistake() {
        let owner = |uid, gid| Some(Owner { uid, gid });
        assert_eq!(by(&[]).unwrap(), None);
        assert_eq!(by(&[("SUDO_UID", "1000"), ("SUDO_GID", "100")]).unwrap(), owner(1000, 100));
        assert_eq!(by(&[("SUDO_UID", "0"), ("SUDO_GID", "0")]).unwrap(), None);
        assert_eq!(by(&[("DOAS_USER", "root")]).unwrap(), None);
        assert_eq!(by(&[("PKEXEC_UID", "0")]).unwrap(), None);
        for (wrong, why) in [
            (&[("SUDO_UID", "1000")][..], "SUDO_GID is not"),
            (&[("SUDO_GID", "1000")], "SUDO_UID is not"),
            (&[("SUDO_UID", "abc"), ("SUDO_GID", "100")], "SUDO_UID is \"abc\""),
            (&[("SUDO_UID", "1000"), ("SUDO_GID", "-1")], "SUDO_GID is \"-1\""),
            (&[("SUDO_UID", "4294967295"), ("SUDO_GID", "1")], "no id"),
            (&[("DOAS_USER", "no such user")], "no such user"),
            (&[("PKEXEC_UID", "")], "no id"),
        ] {
            let error = format!("{:#}", by(wrong).unwrap_err());
            assert!(error.contains(why), "{wrong:?}: {error}");
        }
    }
}
