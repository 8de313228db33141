// Decodes an image file to an upright RGB image of 8 bits per channel, as deit.images.decoding does.

const STRIP_PIXELS = 2 ** 20; // read at a time: the canvas of some browsers holds less than a photograph

// Returns {planes, height, width}: of red, green and blue a Uint8Array, row by row.
export async function decode(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" }).catch(() => {
    throw new Error("This browser cannot read the file as an image");
  });
  try {
    return readPixels(bitmap);
  } finally {
    bitmap.close();
  }
}

function readPixels(bitmap) {
  const { height, width } = bitmap;
  const planes = [0, 1, 2].map(() => new Uint8Array(height * width));
  const rows = Math.min(Math.max(Math.floor(STRIP_PIXELS / width), 1), height);
  const context = new OffscreenCanvas(width, rows).getContext("2d", { alpha: false, willReadFrequently: true });
  context.fillStyle = "white"; // what transparent pixels are composited onto
  for (let top = 0; top < height; top += rows) {
    context.fillRect(0, 0, width, rows);
    context.drawImage(bitmap, 0, -top);
    const { data } = context.getImageData(0, 0, width, Math.min(rows, height - top));
    const first = top * width;
    for (let pixel = 0; pixel < data.length / 4; pixel++) {
      for (let channel = 0; channel < 3; channel++) planes[channel][first + pixel] = data[4 * pixel + channel];
    }
  }
  return { planes, height, width };
}
