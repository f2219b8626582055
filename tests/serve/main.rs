//! The server, end to end, with the demo model on the CPU: its answers are those of the command line, whatever clients do.
//!
//! `STEP1X_SERVE_LOAD=1` makes more of everything: 500 clients that go, and ten times the queue.

#![cfg(all(unix, feature = "serve"))]

mod answers;
mod clients;
mod devices;
mod ending;
mod errors;
mod jobs;
mod limits;
mod load;
mod status;
mod support;
