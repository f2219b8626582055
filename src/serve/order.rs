//! An edit that was admitted: its way from the picture's file through the queue to the files of the results.
//!
//! Whoever waits holds the [`Order`]; when it goes, because the client did, the edit stops within a node.

use std::sync::Arc;
use std::time::Instant;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::time::{sleep_until, timeout_at};

use super::ask::Ask;
use super::cancel::{Cancel, Why};
use super::fault::Fault;
use super::limits::{HELD_MEGAPIXELS_MAX, PIXELS_MAX};
use super::line::Line;
use super::server::Server;
use super::work::{Made, News};
use crate::error::ResourceError;
use crate::image::{self, Filter, Format, Reading, Rgb, decode_bytes};
use crate::pipeline::check_host_memory;

/// An edit that was admitted.
pub struct Order {
    server: Arc<Server>,
    ask: Ask,
    line: Arc<Line>,
    number: u64,
    cancel: Cancel,
    news: UnboundedReceiver<News>,
    deadline: Instant,
    /// Width and height of the results; none: as the worker makes them.
    result: Option<(usize, usize)>,
    /// Of the megapixels that may be held.
    _held: Hold,
}

/// Megapixels that are given back when this goes.
struct Hold(Arc<Server>, u32);

impl Drop for Hold {
    fn drop(&mut self) {
        self.0.megapixels.add_permits(self.1 as usize);
    }
}

/// What whoever waits hears.
pub enum Told<'d> {
    /// So many requests are before this one.
    Waiting(usize),
    /// So many of all steps are done.
    Step(usize, usize),
    /// What the result would be by now, as base64 of a file.
    Partial(usize, String, &'d Done),
    /// A result, and what is known of all so far.
    Picture(Picture, &'d Done),
}

/// A result's file.
#[derive(Clone)]
pub struct Picture {
    /// Base64.
    pub data: String,
    /// Its seed.
    pub seed: u64,
}

/// What was made.
pub struct Done {
    /// What was asked.
    pub ask: Ask,
    /// Width and height.
    pub size: (usize, usize),
    /// Tokens of the prompt.
    pub text_tokens: usize,
    /// Tokens of the picture.
    pub image_tokens: usize,
    /// What the caller should know.
    pub warnings: Vec<String>,
    /// Seconds in the queue.
    pub waited: f64,
    /// Seconds on the worker.
    pub edited: f64,
}

/// Runs work of the processor beside the requests.
async fn aside<T: Send + 'static>(server: &Arc<Server>, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Fault> {
    let _permit = server.codecs.acquire().await.map_err(|_| Fault::shutting_down())?;
    tokio::task::spawn_blocking(work).await.map_err(|panic| Fault::internal(format!("{panic}")))
}

impl Order {
    /// Reads the picture and takes a place in the queue.
    ///
    /// # Errors
    /// A [`Fault`]: the picture cannot be read, is too large, or the queue is full.
    pub async fn place(server: &Arc<Server>, mut ask: Ask, line: &Arc<Line>) -> Result<Order, Fault> {
        server.check()?;
        let deadline = line.begun() + ask.deadline;
        line.facts().seed = Some(ask.wish.seed);
        if server.log_prompts {
            line.facts().prompt = Some(ask.wish.prompt.clone());
        }
        let picture = match ask.picture.take() {
            None => None,
            Some(bytes) => {
                let begun = Instant::now();
                let reading = timeout_at(deadline.into(), aside(server, move || read(&bytes)));
                let (picture, notes) = reading.await.map_err(|_| Why::Late.fault())???;
                line.facts().seconds.decode = Some(begun.elapsed().as_secs_f64());
                line.facts().input = Some(format!("{}x{}", picture.width, picture.height));
                ask.warnings.extend(notes);
                Some(picture)
            }
        };
        let result = picture.as_ref().map(|picture| fitted((picture.width, picture.height), ask.size));
        let hold = hold(server, picture.as_ref(), result.unwrap_or(ask.wish.size), &ask)?;
        let (sender, news) = unbounded_channel();
        let cancel = Cancel::default();
        let number = server.queue.push(ask.wish.clone(), picture, &cancel, sender)?;
        let (server, line) = (server.clone(), line.clone());
        Ok(Order { server, ask, line, number, cancel, news, deadline, result, _held: hold })
    }

    /// What is asked.
    pub fn ask(&self) -> &Ask {
        &self.ask
    }

    /// Its number in the queue.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What stops it.
    pub fn cancel(&self) -> Cancel {
        self.cancel.clone()
    }

    /// Waits for the results; `tell` hears of them and of what comes before.
    ///
    /// # Errors
    /// A [`Fault`]: the edit failed or was stopped.
    pub async fn fulfil(mut self, tell: &mut (dyn FnMut(Told) + Send)) -> Result<Done, Fault> {
        let pushed = Instant::now();
        let (mut begun, mut encoding) = (None, 0.0);
        let mut done = Done {
            size: (0, 0),
            text_tokens: 0,
            image_tokens: 0,
            warnings: std::mem::take(&mut self.ask.warnings),
            waited: 0.0,
            edited: 0.0,
            ask: self.ask.clone(),
        };
        self.server.queue.position(self.number).into_iter().for_each(|before| tell(Told::Waiting(before)));
        loop {
            let news = tokio::select! {
                news = self.news.recv() => news.unwrap_or_else(|| News::Over(Err(Fault::internal("the worker is gone")))),
                () = sleep_until(self.deadline.into()) => {
                    self.cancel.ask(Why::Late);
                    News::Over(Err(Why::Late.fault()))
                }
            };
            match news {
                News::Begun => {
                    done.waited = pushed.elapsed().as_secs_f64();
                    self.line.facts().seconds.wait = Some(done.waited);
                    begun = Some(Instant::now());
                }
                News::Notice(text) => done.warnings.push(text),
                News::Step(step, steps) => tell(Told::Step(step, steps)),
                News::Partial(index, picture) => {
                    let data;
                    (data, done.size) = self.encoded(picture).await?;
                    tell(Told::Partial(index, data, &done));
                }
                News::Picture(made) => {
                    done.edited = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64()) - encoding;
                    let began = Instant::now();
                    done.text_tokens += made.text_tokens;
                    done.image_tokens += made.image_tokens;
                    let picture = self.finished(made, &mut done).await?;
                    tell(Told::Picture(picture, &done));
                    encoding += began.elapsed().as_secs_f64();
                }
                News::Over(over) => {
                    let mut facts = self.line.facts();
                    facts.seconds.edit = begun.map(|_| done.edited);
                    facts.seconds.encode = Some(encoding).filter(|seconds| *seconds > 0.0);
                    facts.output = over.is_ok().then(|| format!("{}x{}", done.size.0, done.size.1));
                    drop(facts);
                    over?;
                    self.server.metrics.edited(done.waited, self.line.begun().elapsed().as_secs_f64());
                    return Ok(done);
                }
            }
        }
    }

    async fn finished(&self, made: Made, done: &mut Done) -> Result<Picture, Fault> {
        let seed = self.ask.wish.seed_of(made.index);
        let (data, size) = self.encoded(made.picture).await?;
        done.size = size;
        Ok(Picture { data, seed })
    }

    /// A picture's file at the size of the results, as base64.
    async fn encoded(&self, picture: Rgb) -> Result<(String, (usize, usize)), Fault> {
        let (format, quality, result) = (self.ask.format, self.ask.quality, self.result);
        let encoded = aside(&self.server, move || {
            let size = result.unwrap_or((picture.width, picture.height));
            let sized = image::resize(&picture, size.0, size.1, Filter::Bicubic);
            let bytes = image::encode_at(&sized, None, format, quality, "")?;
            anyhow::Ok((STANDARD.encode(bytes), size))
        });
        encoded.await?.map_err(|error| Fault::internal(format!("{error:#}")))
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        self.cancel.ask(Why::Gone);
        self.server.queue.remove(self.number);
    }
}

/// The picture of a file, and what is to be known of it.
fn read(bytes: &[u8]) -> Result<(Rgb, Vec<String>), Fault> {
    let reading = Reading { pixels_max: PIXELS_MAX, check_memory: check_host_memory, ..Reading::default() };
    match decode_bytes(bytes, &reading) {
        Ok(decoded) => Ok((decoded.picture, decoded.notes)),
        Err(error) if error.downcast_ref::<ResourceError>().is_some() => Err(Fault::of_edit(&error)),
        Err(error) => Err(Fault::new(400, "invalid_image", format!("the picture cannot be read: {error:#}")).of("image")),
    }
}

/// The largest size of a picture's proportions that fits; its own, if none is asked for.
fn fitted((width, height): (usize, usize), within: Option<(usize, usize)>) -> (usize, usize) {
    let Some(within) = within else { return (width, height) };
    let scale = (within.0 as f64 / width as f64).min(within.1 as f64 / height as f64);
    let side = |side: usize, most: usize| ((side as f64 * scale).round() as usize).clamp(1, most);
    (side(width, within.0), side(height, within.1))
}

/// Makes sure that the results can be written and that there is room for the pictures.
fn hold(server: &Arc<Server>, picture: Option<&Rgb>, result: (usize, usize), ask: &Ask) -> Result<Hold, Fault> {
    ask.format.check_size(result.0, result.1).map_err(|error| Fault::invalid("output_format", format!("{error:#}")))?;
    let results = result.0 as u64 * result.1 as u64 * ask.wish.count as u64;
    if results > PIXELS_MAX {
        let message = format!(
            "{} results of {}x{} pixels are more than {} megapixels together; ask for fewer or smaller ones",
            ask.wish.count,
            result.0,
            result.1,
            PIXELS_MAX / 1_000_000
        );
        return Err(Fault::new(413, "request_too_large", message).of("n"));
    }
    let pixels = results + picture.map_or(0, |picture| (picture.width * picture.height) as u64);
    let megapixels = pixels.div_ceil(1_000_000) as u32;
    match server.megapixels.try_acquire_many(megapixels) {
        Ok(permit) => {
            permit.forget();
            Ok(Hold(server.clone(), megapixels))
        }
        Err(_) => {
            let message = format!(
                "the pictures of all requests have {HELD_MEGAPIXELS_MAX} megapixels, as many as the server holds; try again later"
            );
            Err(Fault::new(503, "queue_full", message).after(1))
        }
    }
}

/// The format's name in answers.
pub fn format_name(format: Format) -> &'static str {
    match format {
        Format::Png => "png",
        Format::Jpeg => "jpeg",
        Format::WebP => "webp",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::EditParameters;
    use crate::serve::ask::{Kind, Offer};
    use crate::serve::form::Form;
    use crate::serve::keys::Keys;
    use crate::serve::server::Settings;

    #[test]
    fn results_keep_their_proportions() {
        for (own, within, result) in [
            ((640, 480), None, (640, 480)),
            ((640, 480), Some((1024, 1024)), (1024, 768)),
            ((480, 640), Some((1024, 1024)), (768, 1024)),
            ((640, 480), Some((64, 1024)), (64, 48)),
            ((10_000, 10), Some((16, 16)), (16, 1)),
        ] {
            assert_eq!(fitted(own, within), result);
        }
    }

    fn server() -> Arc<Server> {
        Arc::new(Server::new(Settings {
            offer: Offer {
                names: vec![],
                generates: true,
                edit: EditParameters::new(""),
                deadline: std::time::Duration::from_secs(1),
            },
            keys: Keys::default(),
            origins: vec![],
            hosts: None,
            log_prompts: false,
            quiet: true,
            queue: 1,
        }))
    }

    fn asked(server: &Server, fields: &[(&str, &str)]) -> Ask {
        let fields = [&[("prompt", "a")], fields].concat();
        let fields = fields.into_iter().map(|(name, text)| (name.to_string(), text.to_string())).collect();
        Ask::new(Form { fields, files: vec![] }, Kind::Generation, &server.offer).unwrap()
    }

    #[test]
    fn results_have_at_most_so_many_pixels() {
        let server = server();
        let held = |result, fields: &[(&str, &str)]| {
            let hold = hold(&server, None, result, &asked(&server, fields));
            hold.map(drop).map_err(|fault| (fault.status, fault.code, fault.param.unwrap_or_default()))
        };
        let refused = |status, code: &str, param: &str| Err((status, code.to_string(), param.to_string()));
        assert_eq!(held((10_000, 10_000), &[]), Ok(()));
        assert_eq!(held((10_000, 10_001), &[]), refused(413, "request_too_large", "n"));
        assert_eq!(held((1000, 10_000), &[("n", "10")]), Ok(()));
        assert_eq!(held((1000, 10_001), &[("n", "10")]), refused(413, "request_too_large", "n"));
        assert_eq!(held((1, 16_384), &[("output_format", "webp")]), refused(400, "invalid_value", "output_format"));
        // A header that claims more than may be read.
        let mut png = image::encode(&Rgb { width: 1, height: 1, data: vec![0; 3] }, None, Format::Png, "").unwrap();
        for (width, right) in [(10_000u32, true), (10_001, false)] {
            png[16..20].copy_from_slice(&width.to_be_bytes());
            png[20..24].copy_from_slice(&10_000u32.to_be_bytes());
            let mut sum = flate2::Crc::new();
            sum.update(&png[12..29]);
            png[29..33].copy_from_slice(&sum.sum().to_be_bytes());
            let message = read(&png).unwrap_err().message;
            assert_eq!(!message.contains("at most 100 megapixels"), right, "{message}");
        }
    }

    #[test]
    fn pictures_of_all_requests_have_at_most_so_many_pixels() {
        let server = server();
        let ask = asked(&server, &[]);
        let mut holds: Vec<Hold> = (0..4).map(|_| hold(&server, None, (10_000, 10_000), &ask).ok().unwrap()).collect();
        let fault = hold(&server, None, (16, 16), &ask).err().unwrap();
        assert_eq!((fault.status, fault.code.as_str(), fault.retry_after), (503, "queue_full", Some(1)));
        holds.pop();
        assert!(hold(&server, None, (10_000, 10_000), &ask).is_ok());
    }
}
