//! The body of a request, read whole: not larger, not slower than the limits say.

use std::time::Instant;

use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderName;
use axum::http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http_body_util::BodyExt;
use hyper::body::Bytes;
use tokio::time::timeout;

use super::fault::Fault;
use super::limits::{BODY_BYTES_MAX, IDLE_SECONDS_MAX, UPLOAD_SECONDS_MAX, seconds};
use super::line::Line;

/// Type and bytes of a request's body. Nothing of it is read if its length says that it is too long.
///
/// # Errors
/// A [`Fault`] of status 400, 408 or 413.
pub async fn body_of(line: &Line, request: Request) -> Result<(String, Bytes), Fault> {
    let (head, body) = request.into_parts();
    let text = |name: &HeaderName| head.headers.get(name).and_then(|value| value.to_str().ok());
    let (kind, length) =
        (text(&CONTENT_TYPE).unwrap_or_default().to_string(), text(&CONTENT_LENGTH).and_then(|text| text.parse().ok()));
    let too_large = || {
        let most = BODY_BYTES_MAX >> 20;
        Fault::new(413, "request_too_large", format!("the request has more than {most} MiB; send a smaller picture"))
    };
    if length.is_some_and(|length| length > BODY_BYTES_MAX) {
        return Err(too_large());
    }
    let begun = Instant::now();
    let bytes = in_time(body, length, too_large).await?;
    line.facts().seconds.upload = Some(begun.elapsed().as_secs_f64());
    Ok((kind, bytes))
}

/// All of a body, if it comes in time and is not too large.
async fn in_time(body: Body, length: Option<usize>, too_large: impl Fn() -> Fault) -> Result<Bytes, Fault> {
    let slow = |_| {
        Fault::new(408, "upload_timeout", format!("the upload took more than {UPLOAD_SECONDS_MAX} s; send a smaller picture"))
    };
    timeout(seconds(UPLOAD_SECONDS_MAX), whole(body, length, too_large)).await.map_err(slow)?
}

async fn whole(mut body: Body, length: Option<usize>, too_large: impl Fn() -> Fault) -> Result<Bytes, Fault> {
    // What a head claims takes no memory before it comes.
    let mut bytes = Vec::with_capacity(length.unwrap_or(0).min(1 << 20));
    loop {
        let idle = |_| Fault::new(408, "upload_timeout", format!("nothing of the upload came for {IDLE_SECONDS_MAX} s"));
        match timeout(seconds(IDLE_SECONDS_MAX), body.frame()).await.map_err(idle)? {
            None => return Ok(bytes.into()),
            Some(Err(error)) => return Err(Fault::new(400, "invalid_body", format!("the upload broke off: {error}"))),
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if bytes.len() + data.len() > BODY_BYTES_MAX {
                    return Err(too_large());
                }
                bytes.extend_from_slice(&data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads a body of which a byte comes every so many seconds.
    fn dripping(apart: u64) -> (Result<Bytes, Fault>, u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            tokio::time::pause();
            let begun = tokio::time::Instant::now();
            let (sender, receiver) = tokio::sync::mpsc::channel(1);
            tokio::spawn(async move {
                for _ in 0..1000 {
                    tokio::time::sleep(seconds(apart)).await;
                    let _ = sender.send(Ok::<_, std::io::Error>("x")).await;
                }
            });
            let drops = tokio_stream::wrappers::ReceiverStream::new(receiver);
            let read = in_time(Body::from_stream(drops), None, || Fault::new(413, "", "")).await;
            (read, begun.elapsed().as_secs())
        })
    }

    #[test]
    fn uploads_come_in_time() {
        let fault = |apart: u64| {
            let (read, after) = dripping(apart);
            let fault = read.unwrap_err();
            assert_eq!((fault.status, fault.code.as_str()), (408, "upload_timeout"));
            (fault.message, after)
        };
        let (message, after) = fault(31);
        assert!(message.contains("30 s") && after == 30, "{message}");
        let (message, after) = fault(29);
        assert!(message.contains("120 s") && after == 120, "{message}");
        assert_eq!(dripping(0).0.unwrap().len(), 1000);
    }
}
