//! What LoRA files add to a weight, for a device that adds it by itself: it takes the weight as the files have it, and factors that
//! are a hundredth of its size.
//!
//! [`Addition::new`] says which weights can be made so; all others are merged while they are read. Both ways make the same bytes.

use std::ops::Range;

use super::change::{Change, Pair, PlusLora, Product};
use super::{Recipe, row_elements, with_buffer};
use crate::ops::{LowRankProduct, WeightOrder};
use crate::tensor::DType;
use crate::weights::decode::{decode_f32, encode_f32};
use crate::weights::{Result, WeightForm};

/// A weight to which a device adds products of a few ranks.
#[derive(Clone, Debug)]
pub struct Addition {
    base: Recipe,
    products: Vec<Plain>,
    form: WeightForm,
    /// Element type of the factors, as they go to the device: their own, or f32 where these differ.
    pub factors: DType,
}

/// A product that is added as it is.
#[derive(Clone, Debug)]
struct Plain {
    rows: Range<usize>,
    pair: Pair,
    factor: f32,
}

impl Plain {
    fn rank(&self) -> usize {
        self.pair.down.spec().shape.0[0]
    }
}

/// What is added to some rows.
#[derive(Clone, Debug, PartialEq)]
pub struct Part {
    /// The products, whose rows count from the first of these.
    pub products: Vec<LowRankProduct>,
    /// All their ranks.
    pub ranks: usize,
}

impl Addition {
    /// A weight that is wanted in a form; none unless a device can make it:
    ///
    /// - Every change is a plain product of a matrix: no LoHa, no LoKr, no DoRA.
    /// - The files have the other summand in bf16, f16 or f32, without scales or blocks, and the sum has its type.
    /// - The form has the files' order, and that type, another of the same size, or f32. (Integers are rounded by the host.)
    pub(in crate::weights) fn new(sum: &PlusLora, form: WeightForm) -> Option<Addition> {
        let (stored, base) = (sum.base.spec(), &*sum.base);
        let types = [DType::BF16, DType::F16, DType::F32];
        let lies = form.dtype.bytes() == stored.dtype.bytes() || form.dtype == DType::F32;
        let plain = |change: &Change| match &change.product {
            Product::LowRank(pair) if change.magnitudes.is_none() => {
                Some(Plain { rows: change.rows.clone(), pair: pair.clone(), factor: change.strength * change.scale })
            }
            _ => None,
        };
        let products: Vec<Plain> = sum.changes.iter().map(plain).collect::<Option<_>>()?;
        let able = base.is_stored()
            && stored.dtype == sum.spec.dtype
            && types.contains(&stored.dtype)
            && types.contains(&form.dtype)
            && stored.shape.0.len() == 2
            && form.order == WeightOrder::AsStored
            && lies;
        let own = products.first()?.pair.up.spec().dtype;
        let has = |pair: &Pair| [&pair.up, &pair.down].iter().all(|factor| factor.spec().dtype == own);
        let alike = types.contains(&own) && products.iter().all(|product| has(&product.pair));
        let factors = if alike { own } else { DType::F32 };
        able.then(|| Addition { base: base.clone(), products, form, factors })
    }

    /// The type in which the weight goes to the device: as stored, or widened to f32.
    pub fn lies_in(&self) -> DType {
        let stored = self.rounded();
        if stored.bytes() == self.form.dtype.bytes() { stored } else { self.form.dtype }
    }

    /// The type that the sum is rounded to, before it takes that of the form.
    pub fn rounded(&self) -> DType {
        self.base.spec().dtype
    }

    /// The type that it has in the end.
    pub fn dtype(&self) -> DType {
        self.form.dtype
    }

    /// How many rows it has.
    pub fn rows(&self) -> usize {
        self.base.spec().shape.0[0]
    }

    /// How many products are added.
    pub fn count(&self) -> usize {
        self.products.len()
    }

    /// Elements of a row.
    pub fn width(&self) -> usize {
        row_elements(&self.base.spec().shape)
    }

    /// What is added to some rows.
    pub fn part(&self, rows: &Range<usize>) -> Part {
        let (mut products, mut ranks) = (vec![], 0);
        for Plain { rows: own, factor, .. } in self.touching(rows) {
            let common = own.start.max(rows.start)..own.end.min(rows.end);
            products.push(LowRankProduct {
                rows: common.start - rows.start..common.end - rows.start,
                ranks: 0..0,
                factor: *factor,
            });
        }
        for (product, plain) in products.iter_mut().zip(self.touching(rows)) {
            product.ranks = ranks..ranks + plain.rank();
            ranks += plain.rank();
        }
        Part { products, ranks }
    }

    /// Ranks of all products: no rows have more.
    pub fn most_ranks(&self) -> usize {
        self.products.iter().map(Plain::rank).sum()
    }

    fn touching(&self, rows: &Range<usize>) -> impl Iterator<Item = &Plain> {
        let rows = rows.clone();
        self.products.iter().filter(move |plain| plain.rows.start < rows.end && rows.start < plain.rows.end)
    }

    /// Reads some rows as the files have them; `bytes` are little-endian in the type of [`lies_in`](Addition::lies_in). Then the
    /// factors, of as many columns and rows as the part has ranks: `up` [rows, ranks], whose elements outside a product's own rows
    /// are nobody's, and `down` [ranks, width]. Gives whether the sums are finite for certain: if not, the host has to add them up,
    /// so that what is wrong can be named.
    ///
    /// # Errors
    /// What reading reports.
    pub fn read(&self, rows: &Range<usize>, bytes: &mut [u8], up: &mut [u8], down: &mut [u8]) -> Result<bool> {
        let stored = self.rounded();
        let mut most = self.read_base(rows.start * self.width() * stored.bytes(), bytes)?;
        let (size, Part { products, ranks }) = (self.factors.bytes(), self.part(rows));
        let mut largest_product = 0.0f64;
        for (product, Plain { rows: own, pair, .. }) in products.iter().zip(self.touching(rows)) {
            let (rank, first) = (product.ranks.len(), rows.start + product.rows.start - own.start);
            let largest_up = with_buffer(product.rows.len() * rank, |values| {
                pair.up.values(first * rank, values)?;
                for (row, values) in product.rows.clone().zip(values.chunks_exact(rank)) {
                    encode_f32(self.factors, values, &mut up[(row * ranks + product.ranks.start) * size..][..rank * size]);
                }
                Ok(largest(values))
            })?;
            let largest_down = with_buffer(rank * self.width(), |values| {
                pair.down.values(0, values)?;
                encode_f32(self.factors, values, &mut down[product.ranks.start * self.width() * size..][..values.len() * size]);
                Ok(largest(values))
            })?;
            let bound = rank as f64 * largest_up * largest_down;
            largest_product = largest_product.max(bound);
            most += f64::from(product.factor.abs()) * bound;
        }
        // With room for what the sums round.
        Ok(most < 0.99 * greatest(stored)
            && most < 0.99 * greatest(self.form.dtype)
            && largest_product < 0.99 * f64::from(f32::MAX))
    }

    /// Gives the largest magnitude.
    fn read_base(&self, offset: usize, bytes: &mut [u8]) -> Result<f64> {
        let (stored, lies_in) = (self.rounded(), self.lies_in());
        let bits = if stored == lies_in || stored.bytes() == lies_in.bytes() {
            self.base.read_stored(offset, bytes)?
        } else {
            let mut narrow = vec![0; bytes.len() / lies_in.bytes() * stored.bytes()];
            let bits = self.base.read_stored(offset, &mut narrow)?;
            with_buffer(bytes.len() / lies_in.bytes(), |values| {
                decode_f32(stored, &narrow, values);
                encode_f32(lies_in, values, bytes);
            });
            bits
        };
        let mut value = [0.0];
        decode_f32(stored, &bits.to_le_bytes()[..stored.bytes()], &mut value);
        Ok(value[0].into())
    }
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0.0f32, |most, value| most.max(value.abs())).into()
}

/// The greatest finite value of a type.
fn greatest(dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => half::bf16::MAX.to_f64(),
        DType::F16 => half::f16::MAX.to_f64(),
        _ => f32::MAX.into(),
    }
}

#[cfg(test)]
mod tests {
    use pulp::Arch;

    use super::*;
    use crate::ops::{AddLowRank, Op, Operand, Output, Values};
    use crate::tensor::{Component, Spec};
    use crate::weights::recipe::tests::{Source, source};
    use crate::weights::recipe::{Factor, Magnitudes, Rows};
    use crate::weights::{WeightKey, WeightSource};

    /// A sum as the one weight of a source.
    struct One<'a>(&'a Recipe);

    impl WeightSource for One<'_> {
        fn spec(&self, _: Component, _: &str) -> Option<Spec> {
            Some(self.0.spec().clone())
        }

        fn read_at(&self, _: Component, _: &str, offset: usize, bytes: &mut [u8]) -> Result<()> {
            self.0.read_at(offset, bytes)
        }
    }

    fn as_stored(dtype: DType) -> WeightForm {
        WeightForm { dtype, order: WeightOrder::AsStored }
    }

    /// What a device makes of some rows, by the reference of its kernel; none if the host has to.
    fn added(addition: &Addition, rows: Range<usize>) -> Option<Vec<u8>> {
        let (part, width) = (addition.part(&rows), addition.width());
        let values = |dtype: DType, bytes: &[u8]| {
            let mut values = vec![0.0; bytes.len() / dtype.bytes()];
            decode_f32(dtype, bytes, &mut values);
            values
        };
        let mut bytes = vec![0; rows.len() * width * addition.lies_in().bytes()];
        let size = addition.factors.bytes();
        let (mut up, mut down) = (vec![0xff; rows.len() * part.ranks * size], vec![0xff; part.ranks * width * size]);
        if !addition.read(&rows, &mut bytes, &mut up, &mut down).unwrap() {
            return None;
        }
        let operand = |values, shape: [usize; 2]| Operand { spec: Spec::new(DType::F32, shape), values: Values::F32(values) };
        let (w, up, down) = (values(addition.lies_in(), &bytes), values(addition.factors, &up), values(addition.factors, &down));
        let mut y = [Output::zeros(Spec::new(DType::F32, [rows.len(), width]))];
        let op = AddLowRank { products: part.products, rounded: addition.rounded() };
        let operands =
            [operand(&w, [rows.len(), width]), operand(&up, [rows.len(), part.ranks]), operand(&down, [part.ranks, width])];
        op.infer(&operands.each_ref().map(|operand| operand.spec.clone())).unwrap();
        op.reference(&operands, &mut y);
        encode_f32(addition.dtype(), y[0].f32(), &mut bytes);
        Some(bytes)
    }

    fn change(source: &Source, number: usize, rows: Range<usize>, scale: f32) -> Change {
        let [up, down] = ["up", "down"].map(|name| source.stored(&format!("{name}{number}")));
        Change { rows, product: Product::LowRank(Pair { up, down }), scale, strength: -0.75, magnitudes: None }
    }

    /// With any types, products of some rows and of all, and rows from anywhere on, both ways make the same bytes.
    #[test]
    fn the_device_makes_the_bytes_of_the_host() {
        if matches!(Arch::new(), Arch::Scalar) {
            return println!("SKIPPED: this processor has no fused multiply-add");
        }
        let (bf16, f16, f32) = (DType::BF16, DType::F16, DType::F32);
        for (stored, form, ups, downs) in
            [(bf16, bf16, bf16, bf16), (bf16, f32, f16, f16), (f16, bf16, f32, f32), (f16, f16, bf16, f32), (f32, f32, f32, f32)]
        {
            let source = source(&[
                ("top", stored, &[30, 40]),
                ("rest", stored, &[60, 40]),
                ("up0", ups, &[30, 5]),
                ("down0", downs, &[5, 40]),
                ("up1", ups, &[90, 17]),
                ("down1", downs, &[17, 40]),
                ("up2", ups, &[20, 3]),
                ("down2", downs, &[3, 40]),
            ]);
            let base = Recipe::Rows(Rows::of_all([source.stored("top"), source.stored("rest")]).unwrap());
            let changes = vec![change(&source, 0, 30..60, 0.5), change(&source, 1, 0..90, 1.0), change(&source, 2, 55..75, 2.0)];
            let sum = Recipe::PlusLora(PlusLora::new(base, changes, stored).unwrap());
            let Recipe::PlusLora(plus) = &sum else { unreachable!() };
            let addition = Addition::new(plus, as_stored(form)).unwrap();
            assert_eq!(addition.factors, if ups == downs { ups } else { f32 });
            let key = WeightKey { component: Component::Dit, name: "w".into(), form: as_stored(form) };
            for rows in [0..90, 0..30, 29..31, 57..58, 75..90] {
                let mut bytes = vec![0; rows.len() * 40 * form.bytes()];
                key.fill(&One(&sum), rows.start * 40, &mut bytes).unwrap();
                assert!(added(&addition, rows.clone()).unwrap() == bytes, "{rows:?} of {stored} as {form}");
            }
        }
    }

    #[test]
    fn what_no_kernel_adds_is_left_to_the_host() {
        let (bf16, f32) = (DType::BF16, DType::F32);
        let source = source(&[
            ("w", bf16, &[6, 4]),
            ("wide", f32, &[6, 4]),
            ("narrow", DType::F8E4M3, &[6, 4]),
            ("up0", bf16, &[6, 2]),
            ("down0", bf16, &[2, 4]),
            ("lengths", bf16, &[6]),
            ("one", bf16, &[1, 1]),
        ]);
        let plain = || change(&source, 0, 0..6, 1.0);
        let sum = |base: &str, changes, dtype| PlusLora::new(source.stored(base), changes, dtype).unwrap();
        let able = |sum: PlusLora, form| Addition::new(&sum, form).is_some();
        assert!(able(sum("w", vec![plain()], bf16), as_stored(bf16)) && able(sum("wide", vec![plain()], f32), as_stored(f32)));
        let channels_last = WeightForm { dtype: bf16, order: WeightOrder::ChannelsLast };
        assert!(!able(sum("w", vec![plain()], bf16), channels_last));
        // Rounded twice, or of values that lie in more bytes than the form's.
        assert!(!able(sum("w", vec![plain()], f32), as_stored(f32)) && !able(sum("wide", vec![plain()], f32), as_stored(bf16)));
        assert!(!able(sum("narrow", vec![plain()], bf16), as_stored(bf16)));
        let Product::LowRank(pair) = plain().product else { unreachable!() };
        let dora = Change { magnitudes: Some(Magnitudes::new(source.stored("lengths"))), ..plain() };
        assert!(!able(sum("w", vec![plain(), dora], bf16), as_stored(bf16)));
        let loha = Change { product: Product::Hadamard([pair.clone(), pair]), ..plain() };
        assert!(!able(sum("w", vec![plain(), loha], bf16), as_stored(bf16)));
        let whole = ["one", "w"].map(|name| Factor::Whole(source.stored(name)));
        let lokr = Change { product: Product::Kronecker(whole), ..plain() };
        assert!(!able(sum("w", vec![lokr], bf16), as_stored(bf16)));
    }

    /// Sums that may not be finite are the host's, which names what is wrong.
    #[test]
    fn sums_that_may_leave_the_type_are_left_to_the_host() {
        let source = source(&[("w", DType::F16, &[6, 4]), ("up0", DType::F32, &[6, 2]), ("down0", DType::F32, &[2, 4])]);
        let of = |scale| {
            Addition::new(
                &PlusLora::new(source.stored("w"), vec![change(&source, 0, 0..6, scale)], DType::F16).unwrap(),
                as_stored(DType::F16),
            )
        };
        assert!(added(&of(1.0).unwrap(), 0..6).is_some());
        assert!(added(&of(1e6).unwrap(), 0..6).is_none());
    }
}
