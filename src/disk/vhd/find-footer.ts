import type { FileHandle } from 'node:fs/promises';
import { LcowError } from '../../errors/index.js';
import { readAt } from '../structure/index.js';
import { badVhdField, decodeVhdFooter, VHD_FOOTER, VHD_FOOTER_BYTES, type VhdFooter } from './footer.js';

/** The footer of a VHD file. */
export interface FoundFooter {
  readonly footer: VhdFooter;
  /** Whether the footer at the end is good; otherwise it is the copy at the start of a dynamic disk. */
  readonly footerGood: boolean;
}

const COOKIE = 'conectix';

/** Whether a file looks like a VHD: a footer's cookie is at its end or, of dynamic ones, at its start. */
export async function looksLikeVhd(file: FileHandle): Promise<boolean> {
  const { size } = await file.stat();
  if (size < VHD_FOOTER_BYTES) return false;
  const cookieAt = async (offset: number): Promise<string> => (await readAt(file, offset, 8)).toString('latin1');
  return (await cookieAt(size - VHD_FOOTER_BYTES)) === COOKIE || (await cookieAt(0)) === COOKIE;
}

/**
 * Finds and checks the footer of a VHD, and of a fixed one that it fits the file.
 * @throws LcowError BAD_VHD naming field and offset; also for a file that is none, and for differencing VHDs.
 */
export async function findVhdFooter(file: FileHandle, path: string): Promise<FoundFooter> {
  const { size } = await file.stat();
  if (size < VHD_FOOTER_BYTES)
    throw new LcowError('BAD_VHD', `${path} is neither VHD nor VHDX: it has ${size} bytes, a footer alone has 512.`);
  const footerOffset = size - VHD_FOOTER_BYTES;
  const start = await readAt(file, 0, VHD_FOOTER_BYTES);
  const end = await readAt(file, footerOffset, VHD_FOOTER_BYTES);
  // "If the hard disk footer is corrupt, the copy at the beginning of the file is used": dynamic disks only.
  const hasCopy = start.toString('latin1', 0, 8) === COOKIE && footerOffset > 0;
  if (!hasCopy && end.toString('latin1', 0, 8) !== COOKIE)
    throw new LcowError(
      'BAD_VHD',
      `${path} is neither VHD nor VHDX: "vhdxfile" is not at its start, and "conectix", the cookie of a footer, not at ` +
        `byte ${footerOffset}.`,
      { details: { part: VHD_FOOTER.name, field: 'cookie', offset: footerOffset } },
    );
  let footer: VhdFooter;
  let footerGood = true;
  try {
    footer = decodeVhdFooter(end, path, footerOffset);
  } catch (error) {
    if (!hasCopy) throw error;
    footer = decodeVhdFooter(start, path);
    footerGood = false;
    if (footer.kind === 'fixed') throw error;
  }
  if (footer.kind === 'differencing')
    throw new LcowError('BAD_VHD', `${path} is a differencing VHD, which is not supported.`);
  if (footer.kind === 'fixed' && footer.virtualSizeBytes !== footerOffset)
    throw badVhdField(
      path,
      VHD_FOOTER.name,
      'currentSize',
      footerOffset + VHD_FOOTER.fields.currentSize.offset,
      `is ${footer.virtualSizeBytes}, but ${footerOffset} bytes stand before the footer`,
    );
  return { footer, footerGood };
}
