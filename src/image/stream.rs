//! Where a picture comes from or goes to: a file, or the process's own pipes.

use std::fmt;
use std::io::{IsTerminal, StdinLock, stdin};
use std::path::PathBuf;

use anyhow::{Result, anyhow};

use crate::error::usage;

/// A file, or standard input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stream {
    /// A file of this name.
    File(PathBuf),
    /// Standard input of what is read, standard output of what is written.
    Standard,
}

impl From<PathBuf> for Stream {
    /// `-` is the process's own stream, as usual; a file of that name is `./-`.
    fn from(path: PathBuf) -> Stream {
        if path.as_os_str() == "-" { Stream::Standard } else { Stream::File(path) }
    }
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Stream::File(path) => path.display().fmt(f),
            Stream::Standard => f.write_str("-"),
        }
    }
}

/// Standard input, if it can hold a picture.
///
/// # Errors
/// A usage error if it is a terminal.
pub(super) fn standard_input() -> Result<StdinLock<'static>> {
    let input = stdin().lock();
    match input.is_terminal() {
        true => Err(usage(anyhow!("standard input is a terminal; give it a picture, such as -i - < photo.jpg"))),
        false => Ok(input),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dash_is_the_process_s_own_stream() {
        for (path, stream) in
            [("-", Stream::Standard), ("./-", Stream::File("./-".into())), ("-.png", Stream::File("-.png".into()))]
        {
            assert_eq!(Stream::from(PathBuf::from(path)), stream);
            assert_eq!(stream.to_string(), path);
        }
    }
}
