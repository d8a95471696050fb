/** VHD, the layer format: the footer that follows a raw image, and the header of dynamic VHDs for reading. */
export {
  VHD_FOOTER_BYTES,
  MAXIMUM_VHD_BYTES,
  encodeFixedVhdFooter,
  decodeVhdFooter,
  vhdChecksum,
  type VhdFooter,
} from './footer.js';
