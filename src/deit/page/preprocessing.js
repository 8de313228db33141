// Resizes, crops and normalizes images as DeiTImageProcessor does: to the bit of Pillow, in whose order it adds and rounds.
//
// An image is {planes, height, width}: of each channel a Uint8Array, row by row.

const WEIGHT_UNIT = 2 ** -22; // Pillow's weights are multiples of it, so that sums of 8-bit values are exact
const MAX_SIDE = 16384;

// Pillow's filters: the weight of a pixel by its distance from the center, and the distance from which it is 0.
const FILTERS = {
  box: { radius: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bilinear: { radius: 1, weight: (x) => Math.max(1 - Math.abs(x), 0) },
  hamming: { radius: 1, weight: (x) => (Math.abs(x) < 1 ? sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)) : 0) },
  bicubic: { radius: 2, weight: (x) => bicubic(Math.abs(x)) },
  lanczos: { radius: 3, weight: (x) => (x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0) },
};

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

// Keys' kernel with a = -0.5.
function bicubic(x) {
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
}

// Returns the input of the model, channel by channel: a Uint8Array, or a Float32Array if the settings normalize.
// The settings are those of model.json, named as in preprocessor_config.json; null where a step is off.
export function preprocess(image, { size, resample, crop_size, crop_rounding, normalization, pad_size }) {
  const target = size ? targetSize(size, image.height, image.width) : image;
  const crop = crop_size ?? target;
  const filter = size ? resample : "nearest"; // which copies pixels if the size stays
  const halfEven = crop_rounding === "even";
  const rows = planAxis(image.height, target.height, crop.height, filter, halfEven);
  const columns = planAxis(image.width, target.width, crop.width, filter, halfEven);
  const resized = verticalFirst(image, target)
    ? resizeColumns(resizeRows(image, rows), columns)
    : resizeRowsLast(image, rows, columns);
  return normalization ? normalize(resized, normalization, pad_size ?? crop) : concatenate(resized.planes);
}

// The size that an image is resized to; see deit.images.processor_settings.target_size.
export function targetSize(size, height, width) {
  if (size.height !== undefined) return { height: size.height, width: size.width };
  if (size.max_height !== undefined) {
    const scale = Math.min(size.max_height / height, size.max_width / width);
    return { height: clampSide(height * scale), width: clampSide(width * scale) };
  }
  const shorter = Math.min(height, width);
  const longer = Math.max(height, width);
  let exactEdge = size.shortest_edge;
  let edge = exactEdge;
  if ((longer / shorter) * edge > (size.longest_edge ?? Infinity)) {
    exactEdge = (size.longest_edge * shorter) / longer;
    edge = roundHalfEven(exactEdge);
  }
  if (size.longest_edge !== undefined && edge === shorter) return { height, width };
  const otherEdge = clampSide((exactEdge * longer) / shorter);
  edge = clampSide(edge);
  return height <= width ? { height: edge, width: otherEdge } : { height: otherEdge, width: edge };
}

// The first pixel of a center crop; negative if the crop is longer. See deit.images.resizing.center_offset.
export function centerOffset(length, crop, halfEven) {
  if (!halfEven) return Math.floor((length - crop) / 2);
  return length >= crop ? roundHalfEven((length - crop) / 2) : -Math.floor((crop - length) / 2);
}

function clampSide(side) {
  return Math.min(Math.max(Math.trunc(side), 1), MAX_SIDE);
}

function roundHalfEven(value) {
  const below = Math.floor(value);
  if (value - below !== 0.5) return Math.round(value);
  return below % 2 ? below + 1 : below;
}

// Whether Pillow resizes vertically before horizontally; see deit.images.resizing.vertical_first.
function verticalFirst(image, target) {
  return image.height - target.height > Math.max(2 * (image.width - target.width), 0);
}

// How each pixel of a center crop of `crop` is made, where an axis of `length` pixels is resized to `target`:
// from the `counts[i]` pixels that begin at `starts[i]`, by the weights that begin at `weights[i * taps]`.
// Pixels outside of the resized image are made of none, and become 0.
function planAxis(length, target, crop, filter, halfEven) {
  const offset = centerOffset(target, crop, halfEven);
  const sources = filter === "nearest" ? nearestSources(length, target) : filteredSources(length, target, FILTERS[filter]);
  const taps = sources.taps;
  const plan = { starts: new Int32Array(crop), counts: new Int32Array(crop), weights: new Float64Array(crop * taps), taps };
  for (let i = Math.max(-offset, 0); i < Math.min(crop, target - offset); i++) {
    const { start, weights } = sources.of(i + offset);
    plan.starts[i] = start;
    plan.counts[i] = weights.length;
    plan.weights.set(weights, i * taps);
  }
  return plan;
}

function filteredSources(length, target, { radius, weight }) {
  const step = length / target;
  const scale = Math.max(step, 1);
  const support = radius * scale;
  const of = (index) => {
    const center = (index + 0.5) * step;
    const start = Math.max(Math.trunc(center - support + 0.5), 0);
    const stop = Math.min(Math.trunc(center + support + 0.5), length);
    const weights = Array.from({ length: stop - start }, (_, tap) => weight((tap + start - center + 0.5) * (1 / scale)));
    const total = weights.reduce((sum, value) => sum + value, 0);
    return { start, weights: weights.map((value) => roundedWeight(value / total)) };
  };
  return { taps: Math.ceil(support) * 2 + 1, of };
}

function roundedWeight(value) {
  return Math.trunc(value / WEIGHT_UNIT + (value < 0 ? -0.5 : 0.5)) * WEIGHT_UNIT;
}

function nearestSources(length, target) {
  const step = length / target;
  const starts = new Int32Array(target);
  let position = step * 0.5;
  for (let i = 0; i < target; i++) {
    starts[i] = Math.min(Math.trunc(position), length - 1);
    position += step; // Pillow adds, which rounds otherwise than a product
  }
  return { taps: 1, of: (index) => ({ start: starts[index], weights: [1] }) };
}

// Resizes horizontally, only the rows that are needed, and then vertically.
function resizeRowsLast({ planes, height, width }, rows, columns) {
  const used = [...rows.starts.keys()].filter((i) => rows.counts[i]);
  const first = rows.starts[used[0]];
  const last = Math.min(Math.max(...used.map((i) => rows.starts[i] + rows.counts[i])), height);
  const needed = { planes: planes.map((plane) => plane.subarray(first * width, last * width)), height: last - first, width };
  return resizeRows(resizeColumns(needed, columns), { ...rows, starts: rows.starts.map((start) => start - first) });
}

function resizeColumns({ planes, height, width }, plan) {
  const length = plan.starts.length;
  const layout = { lines: height, lineStep: width, step: 1, resizedLineStep: length, resizedStep: 1 };
  return { planes: planes.map((plane) => resizeLines(plane, plan, layout)), height, width: length };
}

function resizeRows({ planes, width }, plan) {
  const length = plan.starts.length;
  const layout = { lines: width, lineStep: 1, step: width, resizedLineStep: 1, resizedStep: width };
  return { planes: planes.map((plane) => resizeLines(plane, plan, layout)), height: length, width };
}

// Resizes all lines of a plane. Steps are distances in memory: `step` of the pixels of a line, `lineStep` of the lines.
function resizeLines(plane, { starts, counts, weights, taps }, { lines, lineStep, step, resizedLineStep, resizedStep }) {
  const length = starts.length;
  const resized = new Uint8ClampedArray(lines * length);
  for (let i = 0; i < length; i++) {
    const firstWeight = i * taps;
    const endWeight = firstWeight + counts[i];
    for (let line = 0; line < lines; line++) {
      let sum = 0.5;
      let position = line * lineStep + starts[i] * step;
      for (let weight = firstWeight; weight < endWeight; weight++) {
        sum += plane[position] * weights[weight];
        position += step;
      }
      resized[line * resizedLineStep + i * resizedStep] = Math.floor(sum);
    }
  }
  return resized;
}

function concatenate(planes) {
  const values = new Uint8Array(planes.length * planes[0].length);
  planes.forEach((plane, channel) => values.set(plane, channel * plane.length));
  return values;
}

// Rescales and normalizes, in the roundings of deit.images.arrays.rescale_and_normalize, and pads on the right and bottom.
function normalize({ planes, height, width }, { factor, mean, std }, padded) {
  const values = new Float32Array(planes.length * padded.height * padded.width);
  planes.forEach((plane, channel) => {
    const table = Float32Array.from({ length: 256 }, (_, level) => {
      const rescaled = Math.fround(level * factor);
      return Math.fround(rescaled - Math.fround(mean[channel])) / Math.fround(std[channel]);
    });
    for (let row = 0; row < height; row++) {
      const start = (channel * padded.height + row) * padded.width;
      for (let column = 0; column < width; column++) values[start + column] = table[plane[row * width + column]];
    }
  });
  return values;
}
