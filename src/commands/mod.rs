//! The commands besides `edit`. Each takes a job whose every choice is made, whoever made it.

pub mod batch;
pub mod demo;
pub mod doctor;
pub mod gedit;
pub mod inspect;
pub mod judge;
pub mod measure;
pub mod op;
pub mod pull;
pub mod serve;
pub mod synth;
pub mod verify;
