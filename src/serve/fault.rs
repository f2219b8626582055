//! Why a request is not met, as clients of OpenAI's interface understand it.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::cancel::{Stopped, Why};
use crate::cuda::OutOfMemory;
use crate::error::{ResourceError, UsageError};

/// A request that is not met: an HTTP status, and what stands in the error object of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fault {
    /// The HTTP status.
    pub status: u16,
    /// A word that programs tell faults apart by.
    pub code: String,
    /// The field of the request that is to blame; none: no single one.
    pub param: Option<String>,
    /// What a person reads.
    pub message: String,
    /// Seconds after which to try again.
    pub retry_after: Option<u64>,
    /// Whether the same request would fail again, so that clients do not repeat it by themselves.
    pub lasting: bool,
    /// What only the log may say: it can name paths.
    pub detail: Option<String>,
}

impl Fault {
    /// A fault of this status and code.
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Fault {
        let (code, message) = (code.to_string(), message.into());
        Fault { status, code, param: None, message, retry_after: None, lasting: false, detail: None }
    }

    /// A field whose value cannot be taken.
    pub fn invalid(param: &str, message: impl Into<String>) -> Fault {
        Fault::new(400, "invalid_value", message).of(param)
    }

    /// A field that is known and means nothing here.
    pub fn unsupported(param: &str, message: impl Into<String>) -> Fault {
        Fault::new(400, "unsupported_parameter", message).of(param)
    }

    /// The same, with the field that is to blame.
    pub fn of(self, param: &str) -> Fault {
        Fault { param: Some(param.into()), ..self }
    }

    /// The same, with the seconds after which to try again.
    pub fn after(self, seconds: u64) -> Fault {
        Fault { retry_after: Some(seconds), ..self }
    }

    /// The same, which trying again will not help.
    pub fn lasts(self) -> Fault {
        Fault { lasting: true, ..self }
    }

    /// The request came while the server goes down.
    pub fn shutting_down() -> Fault {
        Fault::new(503, "shutting_down", "the server is shutting down; send the request again, to another one if there is one")
            .after(5)
    }

    /// A fault of this program.
    pub fn internal(detail: impl Into<String>) -> Fault {
        let message = "the edit failed inside the server; its log says why";
        Fault { detail: Some(detail.into()), ..Fault::new(500, "internal", message).lasts() }
    }

    /// The class of the fault in OpenAI's interface.
    pub fn kind(&self) -> &'static str {
        match self.status {
            429 => "rate_limit_error",
            500.. => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The body of the answer.
    pub fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind(), "param": self.param, "code": self.code}})
    }

    /// What an edit's error means to who asked for it.
    pub fn of_edit(error: &anyhow::Error) -> Fault {
        let detail = format!("{error:#}");
        if let Some(Stopped(why)) = error.downcast_ref() {
            return why.fault();
        }
        if error.downcast_ref::<UsageError>().is_some() {
            return Fault::new(400, "invalid_value", detail);
        }
        if OutOfMemory::is_in(error) || error.downcast_ref::<ResourceError>().is_some() {
            let message = "the server has too little memory for this edit; ask for a smaller size_level, or try again later";
            return Fault { detail: Some(detail), ..Fault::new(503, "out_of_memory", message).lasts() };
        }
        Fault::internal(detail)
    }
}

impl Why {
    /// What a request that was stopped for this reason is told.
    pub fn fault(self) -> Fault {
        match self {
            Why::Gone => Fault::new(499, "client_closed_request", "the client closed the connection"),
            Why::Cancelled => Fault::new(409, "cancelled", "the edit was cancelled"),
            Why::Late => Fault::new(504, "timeout", "the edit was not done before its deadline; ask for fewer steps or a smaller size_level, or give it more time with deadline_ms").lasts(),
            Why::Shutdown => Fault::shutting_down(),
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;
    use crate::error::usage;

    #[test]
    fn errors_have_the_status_that_clients_act_upon() {
        let own = |error: anyhow::Error| Fault::of_edit(&error);
        let with = |fault: Fault| (fault.status, fault.code, fault.lasting);
        assert_eq!(with(own(usage(anyhow!("no")))), (400, "invalid_value".into(), false));
        assert_eq!(with(own(ResourceError("full".into()).into())), (503, "out_of_memory".into(), true));
        assert_eq!(with(own(OutOfMemory::error("copy".into(), "none is free".into()))), (503, "out_of_memory".into(), true));
        assert_eq!(with(own(anyhow!("NaN in /secret/file"))), (500, "internal".into(), true));
        assert!(!own(anyhow!("NaN in /secret/file")).body().to_string().contains("secret"));
        assert_eq!(with(own(Stopped(Why::Late).into())), (504, "timeout".into(), true));
        assert_eq!(own(Stopped(Why::Shutdown).into()).status, 503);
    }

    #[test]
    fn the_body_has_the_four_members() {
        let body = Fault::invalid("size", "give WIDTHxHEIGHT").body();
        let expected = json!({"error": {
            "message": "give WIDTHxHEIGHT", "type": "invalid_request_error", "param": "size", "code": "invalid_value",
        }});
        assert_eq!(body, expected);
        assert_eq!(Fault::new(429, "a", "b").kind(), "rate_limit_error");
        assert_eq!(Fault::new(503, "a", "b").kind(), "server_error");
    }
}
