//! The commands besides `edit`.

pub mod demo;
pub mod doctor;
pub mod inspect;
pub mod judge;
pub mod measure;
pub mod synth;
pub mod verify;
