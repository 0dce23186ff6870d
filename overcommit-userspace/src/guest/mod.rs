//! Inside a guest: `host` asks the host what it did to this VM, `alone` is what a guest can see
//! without it, `load` what happened while a command ran.

pub mod alone;
pub mod host;
pub mod load;
