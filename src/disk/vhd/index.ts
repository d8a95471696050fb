/** VHD, the layer format: the footer that follows a raw image, and the header of dynamic VHDs for reading. */
export {
  VHD_FOOTER_BYTES,
  MAXIMUM_VHD_BYTES,
  encodeFixedVhdFooter,
  decodeVhdFooter,
  type VhdFooter,
} from './footer.js';
export { readDynamicVhd, type DynamicVhd } from './dynamic.js';
export { findVhdFooter, looksLikeVhd, type FoundFooter } from './find-footer.js';
