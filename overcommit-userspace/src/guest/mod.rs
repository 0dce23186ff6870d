//! Inside a guest: `host` asks the host what it did to this VM, `alone` is what a guest can see
//! without it, `asking` asks again and again, `load` adds up what happened while a command ran.

pub mod alone;
pub mod asking;
pub mod host;
pub mod load;
