// Draws a map of patches in color over an image in gray, as `deit explain` does.

const OPACITY = 0.65;
// viridis: legible with all kinds of color vision, and in gray.
const COLORS = [
  [68, 1, 84],
  [72, 40, 120],
  [62, 74, 137],
  [49, 104, 142],
  [38, 130, 142],
  [31, 158, 137],
  [53, 183, 121],
  [109, 205, 89],
  [180, 222, 44],
  [253, 231, 37],
];

function color(value) {
  const position = Math.min(Math.max(value, 0), 1) * (COLORS.length - 1);
  const index = Math.min(Math.floor(position), COLORS.length - 2);
  return COLORS[index].map((low, channel) => low + (position - index) * (COLORS[index + 1][channel] - low));
}

export function scaleGradient() {
  return `linear-gradient(90deg, ${COLORS.map((rgb) => `rgb(${rgb.join(" ")})`).join(", ")})`;
}

// map: rows of values; the largest has the brightest color.
export async function drawMap(canvas, view, map) {
  const picture = Object.assign(new Image(), { src: view });
  await picture.decode();
  const { naturalWidth: width, naturalHeight: height } = picture;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.filter = "grayscale(1)";
  context.drawImage(picture, 0, 0);
  context.filter = "none";
  context.globalAlpha = OPACITY;
  context.imageSmoothingEnabled = true;
  context.drawImage(colored(map), 0, 0, width, height);
}

// A canvas with a pixel per patch.
function colored(map) {
  const canvas = Object.assign(document.createElement("canvas"), { width: map[0].length, height: map.length });
  const largest = Math.max(...map.flat()) || 1;
  const pixels = map.flat().flatMap((value) => [...color(value / largest), 255]);
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(pixels), canvas.width, canvas.height), 0, 0);
  return canvas;
}
